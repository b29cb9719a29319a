"""Tracks by CoTracker (Karaev et al. 2024, arXiv 2410.11831), where its package and weights are installed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@functools.lru_cache(maxsize=1)
def load_predictor(weights: Path, device: torch.device) -> Any:
    """CoTracker's offline predictor (version 3) with its published weights."""
    from cotracker.predictor import CoTrackerPredictor  # type: ignore[import-not-found]

    return CoTrackerPredictor(checkpoint=str(weights), offline=True, window_len=60).to(device).eval()


@torch.no_grad()
def cotracker_points(frames: NDArray[np.uint8], count: int, weights: Path, device: torch.device) -> dict[str, Tensor]:
    """Track corners of the first frame through a clip.

    Args:
        frames: `[F, H, W, 3]` RGB.
        count: P, corners to look for. Where there are fewer the rest stay hidden.
        weights: file of CoTracker's weights.
        device: where it computes.

    Returns:
        `tracks` `[F, P, 2]` float32, x and y in pixels; `visible` `[F, P]` uint8: where the point is seen, as CoTracker
        judges, and inside of the picture. Unlike Lucas-Kanade it finds points again that were hidden.
    """
    height, width = frames.shape[1:3]
    tracks = torch.zeros(len(frames), count, 2)
    visible = torch.zeros(len(frames), count, dtype=torch.uint8)
    grey = cv2.cvtColor(frames[0], cv2.COLOR_RGB2GRAY)
    apart = max(3.0, min(height, width) / 16)
    corners = cv2.goodFeaturesToTrack(grey, maxCorners=count, qualityLevel=0.01, minDistance=apart)
    if corners is None:
        return {"tracks": tracks, "visible": visible}
    places = torch.from_numpy(corners.reshape(-1, 2).astype(np.float32))
    queries = torch.cat([torch.zeros(len(places), 1), places], dim=1)  # frame, x, y
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float()
    predictor = load_predictor(weights, device)
    found, seen = predictor(video.to(device), queries=queries[None].to(device))  # [1, F, N, 2] and [1, F, N]
    moved, inside = found[0].float().cpu(), seen[0].bool().cpu()
    inside &= ((moved >= 0) & (moved < torch.tensor([width, height]))).all(dim=-1)
    tracks[:, : len(places)], visible[:, : len(places)] = moved, inside.to(torch.uint8)
    visible[0, : len(places)] = 1
    return {"tracks": tracks, "visible": visible}

"""Tracks from a few anchors: where a point is in every frame of a clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from torch import Tensor

Point = tuple[float, float]


def interpolate_track(
    anchors: Sequence[Point] | NDArray[np.floating], num_frames: int, times: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """A point's place in every frame, by monotone cubic interpolation (PCHIP) of its anchors, as Framer does it.

    A single anchor stands for a point that stays: Framer moves it by one pixel in x and y, so that it has a track.

    Args:
        anchors: x and y in pixels, at least one.
        num_frames: F.
        times: of the anchors, rising from 0 (first frame) to 1 (last frame); None spaces them evenly. Outside the first
            and the last anchor's time the point stays where it is.

    Returns:
        `[F, 2]`.

    Raises:
        ValueError: there is no anchor, the times do not rise, or are not as many.
    """
    points = np.asarray(anchors, dtype=np.float64).reshape(-1, 2)
    if len(points) == 0:
        raise ValueError("a track needs at least one point")
    if len(points) == 1:
        points, times = np.concatenate([points, points + 1.0]), None
    stamps = np.linspace(0, 1, len(points)) if times is None else np.asarray(times, dtype=np.float64)
    if len(stamps) != len(points) or (np.diff(stamps) <= 0).any():
        raise ValueError("the times of a track's points must rise, one for each point")
    frames = np.clip(np.linspace(0, 1, num_frames), stamps[0], stamps[-1])
    result: NDArray[np.float64] = PchipInterpolator(stamps, points)(frames)
    return result


def interpolate_tracks(tracks: Sequence[Sequence[Point]], num_frames: int) -> Tensor:
    """Tracks of any numbers of anchors as one tensor `[F, P, 2]` float64, in pixels.

    Raises:
        ValueError: there is no track, or one has no point.
    """
    if not tracks:
        raise ValueError("there is no track")
    return torch.from_numpy(np.stack([interpolate_track(anchors, num_frames) for anchors in tracks], axis=1))

"""What Framer caches: VAE posteriors of whole shots, and what it needs of the frames that are ends of a window."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framelora.compute import DTYPES
from framelora.digest import draw_seed, sha256
from framelora.families.base import ALL_ROWS, EncodeUnit
from framelora.families.framer.codec import clip_pixels, condition_latents, load_image_encoder, load_vae, to_signed

if TYPE_CHECKING:
    from framelora.schema.framer import Framer


class Encoder:
    """VAE and CLIP vision tower of a base model."""

    def __init__(self, base: Path, params: Framer, device: torch.device) -> None:
        self.params = params
        self.device = device
        self.notes: list[str] = []
        self.vae = load_vae(base).to(device).eval().requires_grad_(False)
        encoder, self.clip_settings = load_image_encoder(base)
        self.image_encoder = encoder.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, unit: EncodeUnit, frames: NDArray[np.uint8] | None, rows: slice = ALL_ROWS) -> dict[str, Tensor]:
        """Encode a unit's frames `[F, H, W, 3]`.

        Args:
            unit: what is made of them.
            frames: all of the unit.
            rows: which frames of `latents`, or draws of `noisy_ends`, are wanted.

        Returns:
            For `latents`: `mean` and `std` `[F, C, h, w]` of the VAE's posterior, not scaled by its scaling factor.
            For `ends`: `image_embeds` `[D]` (CLIP), `condition_latents` `[C, h, w]`: posterior mode of the frame with
            pixel noise, not scaled (SVD's convention; StableVideoDiffusionPipeline._encode_vae_image).
            For `noisy_ends`: `condition_latents` `[K, C, h, w]`, the same at K strengths, and `sigmas` `[K]`.
            For `tracks`: see `track_points`. Those that came with a video are in the unit's detail, as
            `dataset.window_tracks.in_window` gives them.
        """
        assert frames is not None  # every unit of Framer's has some
        if unit.kind == "tracks":
            count = self.params.encode.track_points
            if unit.detail:
                return given_points(json.loads(unit.detail), len(frames), count)
            if self.params.encode.tracks == "cotracker":
                weights = Path(self.params.encode.cotracker_weights or "")
                return cotracker_points(frames, count, weights, self.device)
            return track_points(frames, count)
        pixels = to_signed(frames).to(self.device)
        if unit.kind == "latents":
            batches = pixels[rows].split(self.params.encode.vae_batch)
            parts = [self.vae.encode(batch).latent_dist for batch in batches]
            tensors = {"mean": torch.cat([part.mean for part in parts]), "std": torch.cat([part.std for part in parts])}
        elif unit.kind == "noisy_ends":
            tensors = self.noisy_ends(pixels, sha256(frames.tobytes()), rows)
        else:
            # The noise is the frame's own: a function of its pixels, whatever window it ends.
            generator = torch.Generator().manual_seed(draw_seed("condition-noise", sha256(frames.tobytes())))
            noise = torch.randn(pixels.shape, generator=generator).to(self.device)
            strength = self.params.conditioning.noise_aug_strength
            tensors = {
                "condition_latents": condition_latents(self.vae, pixels, noise, strength)[0],
                "image_embeds": self.image_encoder(self.clip_pixels(pixels)).image_embeds[0],
            }
        dtype = DTYPES[self.params.encode.dtype]
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def noisy_ends(self, pixels: Tensor, digest: str, rows: slice) -> dict[str, Tensor]:
        """Draws of one frame's `[1, 3, H, W]` bank: each is a function of the frame, its number and the seed."""
        told = self.params.conditioning
        sigmas = stratified_sigmas(
            told.condition_noise_draws, told.condition_noise_log_mean, told.condition_noise_log_std
        )
        latents = []
        for number, sigma in list(enumerate(sigmas))[rows]:
            seed = draw_seed("condition-noise", told.condition_noise_seed, digest, number)
            noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
            latents.append(condition_latents(self.vae, pixels, noise, sigma))
        return {"condition_latents": torch.cat(latents), "sigmas": torch.tensor(sigmas[rows])}

    def clip_pixels(self, pixels: Tensor) -> Tensor:
        """Prepare frames `[F, 3, H, W]` in [-1, 1] for this base's CLIP."""
        return clip_pixels(pixels, self.image_encoder.config.image_size, self.clip_settings)


def stratified_sigmas(draws: int, log_mean: float, log_std: float) -> list[float]:
    """Strengths `[K]` of condition noise: the median of each of K equal shares of the log-normal law, rising."""
    law = NormalDist(log_mean, log_std)
    return [math.exp(law.inv_cdf((number + 0.5) / draws)) for number in range(draws)]


# Pyramidal Lucas-Kanade: windows of 15 pixels on up to 4 levels; a point is lost when tracking it back misses by more.
WINDOW, LEVELS, MISS = (15, 15), 3, 1.0


def track_points(frames: NDArray[np.uint8], count: int) -> dict[str, Tensor]:
    """Track corners of the first frame through a clip (Bouguet's pyramidal Lucas-Kanade, in OpenCV).

    Args:
        frames: `[F, H, W, 3]` RGB.
        count: P, corners to look for. Where there are fewer the rest stay hidden.

    Returns:
        `tracks` `[F, P, 2]` float32, x and y in pixels; `visible` `[F, P]` uint8: 1 up to the frame in which a point is
        lost, leaves the picture, or is not found again where it came from when it is tracked back.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    apart = max(3.0, min(grey[0].shape) / 16)
    corners = cv2.goodFeaturesToTrack(grey[0], maxCorners=count, qualityLevel=0.01, minDistance=apart)
    tracks = np.zeros((len(frames), count, 2), np.float32)
    visible = np.zeros((len(frames), count), np.uint8)
    found = 0 if corners is None else len(corners)
    if found:
        places, seen = corners.reshape(-1, 2).astype(np.float32), np.ones(found, bool)
        tracks[:, :found], visible[0, :found] = places, 1
        size = np.array([grey[0].shape[1], grey[0].shape[0]])
        for number, (before, after) in enumerate(itertools.pairwise(grey), 1):
            # OpenCV overwrites the fourth argument: copies.
            moved, there, _ = cv2.calcOpticalFlowPyrLK(
                before, after, places, places.copy(), winSize=WINDOW, maxLevel=LEVELS
            )
            back, again, _ = cv2.calcOpticalFlowPyrLK(
                after, before, moved, moved.copy(), winSize=WINDOW, maxLevel=LEVELS
            )
            seen &= (there.ravel() == 1) & (again.ravel() == 1) & (np.linalg.norm(back - places, axis=1) <= MISS)
            seen &= ((moved >= 0) & (moved < size)).all(axis=1)
            places = np.where(seen[:, None], moved, places).astype(np.float32)
            tracks[number:, :found], visible[number, :found] = places, seen
    return {"tracks": torch.from_numpy(tracks), "visible": torch.from_numpy(visible)}


def given_points(places: list[list[list[float] | None]], num_frames: int, count: int) -> dict[str, Tensor]:
    """Tracks that came with a video, as `track_points` gives its own: the first `count` of them.

    Args:
        places: place `[x, y]` of each point in each frame, in pixels; None where it is hidden.
        num_frames: F.
        count: P.
    """
    tracks, visible = torch.zeros(num_frames, count, 2), torch.zeros(num_frames, count, dtype=torch.uint8)
    for point, track in enumerate(places[:count]):
        for frame, place in enumerate(track):
            if place is not None:
                tracks[frame, point], visible[frame, point] = torch.tensor(place), 1
    return {"tracks": tracks, "visible": visible}


@functools.lru_cache(maxsize=1)
def load_predictor(weights: Path, device: torch.device) -> Any:
    """CoTracker's offline predictor (version 3) with its published weights."""
    from cotracker.predictor import CoTrackerPredictor  # type: ignore[import-not-found]

    return CoTrackerPredictor(checkpoint=str(weights), offline=True, window_len=60).to(device).eval()


@torch.no_grad()
def cotracker_points(frames: NDArray[np.uint8], count: int, weights: Path, device: torch.device) -> dict[str, Tensor]:
    """Track corners of the first frame through a clip, by CoTracker (Karaev et al. 2024, arXiv 2410.11831).

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

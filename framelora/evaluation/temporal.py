"""How steady a clip is and how much it moves, without any truth: one value a clip.

Steadiness alone is no virtue: a still picture is perfectly steady. These are read side by side with `flow_magnitude`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from framelora.evaluation.metrics import Frames, ssim
from framelora.media.flow import optical_flow, warp

AGREE = 1.0  # pixels; where flow there and back differ by more, a pixel is hidden in one of the frames


def warp_error(frames: Frames) -> float | None:
    """Flow-compensated change from frame to frame, in 8-bit levels: what motion does not explain.

    Each frame is fetched to the place of the one before along the optical flow, and compared where flow and backward
    flow agree (Lai et al. 2018, arXiv 1808.00449, with mean absolute instead of squared differences). None where they
    agree nowhere.
    """
    cv2.setNumThreads(1)
    errors = []
    for one, other in itertools.pairwise(frames):
        forth, back = optical_flow(one, other), optical_flow(other, one)
        seen = np.linalg.norm(forth + warp(back, forth), axis=-1) <= AGREE
        if seen.any():
            errors.append(np.abs(warp(other, forth) - one.astype(np.float64)).mean(axis=-1)[seen].mean())
    return float(np.mean(errors)) if errors else None


def flicker(frames: Frames) -> float:
    """Mean absolute change from frame to frame, in 8-bit levels.

    VBench's temporal flickering is (255 - this) / 255. On clips that move it measures the motion too.
    """
    return float(np.abs(np.diff(frames.astype(np.float64), axis=0)).mean())


def neighbour_ssim(frames: Frames) -> float:
    """Structural similarity of each frame to the one before, averaged."""
    return float(ssim(frames[1:], frames[:-1]).mean())


def first_ssim(frames: Frames) -> float:
    """Structural similarity of each frame to the first, averaged."""
    return float(ssim(frames[1:], np.repeat(frames[:1], len(frames) - 1, axis=0)).mean())


def flow_magnitude(frames: Frames) -> float:
    """Mean length of the optical flow from frame to frame, in pixels."""
    cv2.setNumThreads(1)
    lengths: list[NDArray[np.floating]] = [
        np.linalg.norm(optical_flow(one, other), axis=-1) for one, other in itertools.pairwise(frames)
    ]
    return float(np.mean(lengths))


BY_CLIP: dict[str, Callable[[Frames], float | None]] = {
    "warp_error": warp_error,
    "flicker": flicker,
    "neighbour_ssim": neighbour_ssim,
    "first_ssim": first_ssim,
    "flow_magnitude": flow_magnitude,
}

"""How near a clip is to the truth, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

LARGEST_PSNR = 100.0  # dB; identical frames would be infinite


def as_tensor(frames: NDArray[np.uint8]) -> torch.Tensor:
    """RGB frames `[F, H, W, 3]`, 0..255, as `[F, 3, H, W]` in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255.0


def psnr(frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB, of each frame `[F, H, W, 3]` over all its values, averaged over the frames.

    A frame that equals the truth counts as 100 dB.
    """
    values = peak_signal_noise_ratio(
        as_tensor(frames), as_tensor(truth), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return float(values.clamp(max=LARGEST_PSNR).mean())


def ssim(frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Structural similarity (Gaussian window of sigma 1.5, RGB), averaged over the frames `[F, H, W, 3]`."""
    return float(structural_similarity_index_measure(as_tensor(frames), as_tensor(truth), data_range=1.0))


def bootstrap_interval(
    differences: NDArray[np.float64], sources: Sequence[str], *, samples: int, seed: int
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of paired differences `[N]`, by resampling their sources.

    Windows of one clip overlap and resemble each other: resampling the windows would make a difference look surer than
    it is, so whole clips are drawn.

    Args:
        differences: one value a window.
        sources: the clip of each window.
        samples: resamplings.
        seed: seed of the resampling.
    """
    names, places = np.unique(np.asarray(sources), return_inverse=True)
    sums = np.bincount(places, weights=differences)
    counts = np.bincount(places)
    picks = np.random.default_rng(seed).integers(0, len(names), size=(samples, len(names)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

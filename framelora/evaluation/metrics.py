"""How near the frames of a clip are to the true ones: one value a frame."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

Frames = NDArray[np.uint8]
Values = NDArray[np.float64]

LARGEST_PSNR = 100.0  # dB; identical frames would be infinite


def as_tensor(frames: Frames) -> torch.Tensor:
    """RGB frames `[F, H, W, 3]`, 0..255, as `[F, 3, H, W]` in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255.0


def psnr(frames: Frames, truth: Frames) -> Values:
    """Peak signal-to-noise ratio of each frame `[F, H, W, 3]` over all its values, in dB: `[F]`.

    A frame that equals the truth counts as 100 dB.
    """
    values = peak_signal_noise_ratio(
        as_tensor(frames), as_tensor(truth), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return np.asarray(values.clamp(max=LARGEST_PSNR), dtype=np.float64)


def ssim(frames: Frames, truth: Frames) -> Values:
    """Structural similarity of each frame `[F, H, W, 3]` (Gaussian window of sigma 1.5, mean over RGB): `[F]`.

    Wang et al. 2004, equation 13.
    """
    values = structural_similarity_index_measure(as_tensor(frames), as_tensor(truth), data_range=1.0, reduction="none")
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


def ms_ssim(frames: Frames, truth: Frames) -> Values:
    """Structural similarity of each frame `[F, H, W, 3]` over five scales: `[F]`. See `limits.SMALLEST_SIDE`.

    Wang, Simoncelli and Bovik 2003, with their weights of the scales.
    """
    values = multiscale_structural_similarity_index_measure(
        as_tensor(frames), as_tensor(truth), data_range=1.0, reduction="none"
    )
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


def temporal_error(frames: Frames, truth: Frames) -> float:
    """How far the change from frame to frame is from the true change, in 8-bit levels.

    The mean of `|(x[t+1] - x[t]) - (y[t+1] - y[t])|` over all values of a clip `[F, H, W, 3]`, both ends included: a
    still clip and a flickering one are both wrong where the truth moves evenly.
    """
    moved = np.diff(frames.astype(np.int16), axis=0)
    true = np.diff(truth.astype(np.int16), axis=0)
    return float(np.abs(moved - true).mean())

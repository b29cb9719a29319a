"""What turns frames into Framer's latents and embeddings and back: VAE and CLIP vision tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection
from transformers.utils.logging import disable_progress_bar


def load_vae(base: Path) -> AutoencoderKLTemporalDecoder:
    """Load the VAE (`base/vae`) in fp32: half precision is known to give black frames (`force_upcast`)."""
    return AutoencoderKLTemporalDecoder.from_pretrained(base / "vae", local_files_only=True)


def load_image_encoder(base: Path) -> tuple[CLIPVisionModelWithProjection, dict[str, Any]]:
    """Load the CLIP vision tower and its preprocessing settings (`base/image_encoder`, `base/feature_extractor`)."""
    disable_progress_bar()
    encoder = CLIPVisionModelWithProjection.from_pretrained(base / "image_encoder", local_files_only=True)
    settings: dict[str, Any] = json.loads((base / "feature_extractor/preprocessor_config.json").read_text())
    return encoder, settings


def to_signed(frames: NDArray[np.uint8]) -> Tensor:
    """RGB frames `[F, H, W, 3]`, 0..255, as `[F, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def resize_antialiased(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize pictures as diffusers' SVD pipeline does before CLIP, and Framer's with it.

    A Gaussian blur of half the excess of the shrinking factor (scikit-image's rule), reflected at the borders, then
    bicubic interpolation with aligned corners.

    Args:
        pixels: `[F, C, H, W]`.
        height, width: of the result.
    """
    channels = pixels.shape[1]
    for dim, wanted in ((-2, height), (-1, width)):
        sigma = max((pixels.shape[dim] / wanted - 1.0) / 2.0, 0.001)
        reach = int(max(4.0 * sigma, 3)) // 2
        weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=pixels.dtype) ** 2) / (2 * sigma**2))
        weights = (weights / weights.sum()).to(pixels.device)
        along, padding = ((-1, 1), (0, 0, reach, reach)) if dim == -2 else ((1, -1), (reach, reach, 0, 0))
        kernel = weights.view(1, 1, *along).expand(channels, -1, -1, -1)
        pixels = functional.conv2d(functional.pad(pixels, padding, mode="reflect"), kernel, groups=channels)
    return functional.interpolate(pixels, (height, width), mode="bicubic", align_corners=True)


def clip_pixels(pixels: Tensor, side: int, settings: dict[str, Any]) -> Tensor:
    """Prepare pictures for CLIP: antialiased resize, then CLIP's own mean and standard deviation.

    Args:
        pixels: `[F, 3, H, W]` in [-1, 1].
        side: of CLIP's input, in pixels.
        settings: of `base/feature_extractor`.
    """
    resized = (resize_antialiased(pixels, side, side) + 1.0) / 2.0
    mean = torch.tensor(settings["image_mean"], device=pixels.device)[:, None, None]
    std = torch.tensor(settings["image_std"], device=pixels.device)[:, None, None]
    return (resized - mean) / std


def condition_latents(
    vae: AutoencoderKLTemporalDecoder, pixels: Tensor, noise: Tensor, noise_aug_strength: float
) -> Tensor:
    """What the UNet is told of end frames: posterior mode of the pictures with pixel noise, **not** scaled.

    SVD's convention (StableVideoDiffusionPipeline), in training as in rendering.

    Args:
        vae: the codec.
        pixels: `[F, 3, H, W]` in [-1, 1].
        noise: standard normal, of the same shape.
        noise_aug_strength: standard deviation of the noise, in units of the [-1, 1] range.

    Returns:
        `[F, C, h, w]`.
    """
    return vae.encode(pixels + noise_aug_strength * noise).latent_dist.mode()


def decode_latents(vae: AutoencoderKLTemporalDecoder, latents: Tensor, chunk_frames: int) -> NDArray[np.uint8]:
    """Latents `[F, C, h, w]`, as the VAE encodes them (not scaled), to RGB frames `[F, H, W, 3]`, 0..255.

    Frames of one chunk see each other in the decoder.
    """
    pixels = torch.cat([vae.decode(chunk, num_frames=len(chunk)).sample for chunk in latents.split(chunk_frames)])
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    frames: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return frames

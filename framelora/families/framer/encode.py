"""What Framer caches: VAE posteriors of whole shots, and what it needs of the frames that are ends of a window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framelora.compute import DTYPES
from framelora.digest import draw_seed, sha256
from framelora.families.base import EncodeUnit
from framelora.families.framer.codec import clip_pixels, condition_latents, load_image_encoder, load_vae, to_signed

if TYPE_CHECKING:
    from framelora.schema.framer import Framer


class Encoder:
    """VAE and CLIP vision tower of a base model."""

    def __init__(self, base: Path, params: Framer, device: torch.device) -> None:
        self.params = params
        self.device = device
        self.vae = load_vae(base).to(device).eval().requires_grad_(False)
        encoder, self.clip_settings = load_image_encoder(base)
        self.image_encoder = encoder.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, unit: EncodeUnit, frames: NDArray[np.uint8] | None) -> dict[str, Tensor]:
        """Encode a unit's frames `[F, H, W, 3]`.

        Returns:
            For `latents`: `mean` and `std` `[F, C, h, w]` of the VAE's posterior, not scaled by its scaling factor.
            For `ends`: `image_embeds` `[D]` (CLIP), `condition_latents` `[C, h, w]`: posterior mode of the frame with
            pixel noise, not scaled (SVD's convention; StableVideoDiffusionPipeline._encode_vae_image).
        """
        assert frames is not None  # every unit of Framer's has some
        pixels = to_signed(frames).to(self.device)
        if unit.kind == "latents":
            parts = [self.vae.encode(batch).latent_dist for batch in pixels.split(self.params.encode.vae_batch)]
            tensors = {"mean": torch.cat([part.mean for part in parts]), "std": torch.cat([part.std for part in parts])}
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

    def clip_pixels(self, pixels: Tensor) -> Tensor:
        """Prepare frames `[F, 3, H, W]` in [-1, 1] for this base's CLIP."""
        return clip_pixels(pixels, self.image_encoder.config.image_size, self.clip_settings)

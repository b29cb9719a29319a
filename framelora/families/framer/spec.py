"""What the configurations of a Framer base say. No network is imported here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BaseSpec:
    """What the VAE's configuration says.

    Attributes:
        latent_channels: C of its latents.
        scaling_factor: what they are multiplied by for the UNet.
        spatial_ratio: pixels a latent, in each direction.
    """

    latent_channels: int
    scaling_factor: float
    spatial_ratio: int


def read_spec(base: Path) -> BaseSpec:
    """Read a base model's configuration (defaults are those of diffusers' AutoencoderKLTemporalDecoder).

    Raises:
        FileNotFoundError: `vae/config.json` is missing.
    """
    vae = json.loads((base / "vae/config.json").read_text())
    return BaseSpec(
        latent_channels=vae.get("latent_channels", 4),
        scaling_factor=float(vae.get("scaling_factor", 0.18215)),
        spatial_ratio=2 ** (len(vae.get("block_out_channels", (64,))) - 1),
    )


def embedding_width(base: Path) -> int:
    """Width of an image's CLIP embedding (default: transformers' CLIPVisionConfig)."""
    return int(json.loads((base / "image_encoder/config.json").read_text()).get("projection_dim", 512))

"""What turns frames into Framer's latents and embeddings and back: VAE and CLIP vision tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLTemporalDecoder
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


def vae_scaling_factor(base: Path) -> float:
    """Read the VAE's scaling factor from its config, without building the VAE."""
    config: dict[str, Any] = AutoencoderKLTemporalDecoder.load_config(base / "vae", local_files_only=True)
    return float(config["scaling_factor"])

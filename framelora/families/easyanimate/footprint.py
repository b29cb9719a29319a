"""What a training step of EasyAnimate's is made of, from configurations alone: for estimates of its memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framelora.families.easyanimate.keys import empty_denoiser
from framelora.families.easyanimate.spec import read_spec
from framelora.files import write_json

if TYPE_CHECKING:
    from framelora.schema.easyanimate import EasyAnimate

# config.json of EasyAnimateV5.1-12b-zh-InP, as far as it differs from the defaults of diffusers' class.
PUBLISHED_TRANSFORMER = {"in_channels": 33, "out_channels": 16, "patch_size": 2, "add_norm_text_encoder": True}


def write_published(folder: Path) -> None:
    """Write the configurations of V5.1 InP, without a weight: enough to know the sizes of everything."""
    write_json(folder / "transformer/config.json", PUBLISHED_TRANSFORMER)
    write_json(folder / "vae/config.json", {})
    write_json(folder / "scheduler/scheduler_config.json", {})


def example_batch(base: Path, params: EasyAnimate, *, num_frames: int, width: int, height: int) -> dict[str, Tensor]:
    """An item as `loss.read_window` gives it, of zeros.

    Args:
        base: folder of the base model; only its configurations are read.
        params: the family's parameters.
        num_frames, width, height: of the window; sides in pixels.
    """
    spec = read_spec(base)
    clip = (spec.latent_frames(num_frames), height // spec.spatial_ratio, width // spec.spatial_ratio)
    text = (params.encode.max_sequence_length, empty_denoiser(base).config.text_embed_dim)
    item = {name: torch.zeros(spec.latent_channels, *clip) for name in ("mean", "std")}
    item |= {name: torch.zeros(text) for name in ("text", "empty")}
    if spec.inpaint:
        item["masked"] = torch.zeros(1 + spec.latent_channels, *clip)
    return item

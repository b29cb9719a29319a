"""How the UNet's layers are called in adapter files, and their shapes, without loading a weight."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from framelora.families.framer.networks.unet import FramerUNet

NETWORK = "unet"
KOHYA_PREFIX = "lora_unet_"


def original_name(layer: str) -> str:
    """A Linear layer's name in the original code: the UNet is diffusers' own class."""
    return layer


def linear_shapes(base: Path) -> dict[str, tuple[int, int]]:
    """(out, in) of every Linear layer of a base's denoiser, from its configuration."""
    config = FramerUNet.load_config(base / "unet", local_files_only=True)
    with torch.device("meta"):
        unet = FramerUNet.from_config(config)
    layers = unet.named_modules()
    return {name: (part.out_features, part.in_features) for name, part in layers if isinstance(part, nn.Linear)}


def idle_layers(layers: list[str]) -> list[str]:
    """Those of a denoiser's layers that can't learn: none."""
    return []

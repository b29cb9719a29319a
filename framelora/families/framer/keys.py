"""How the UNet's layers are called in adapter files, and their shapes, without loading a weight."""

from __future__ import annotations

from pathlib import Path

import torch

from framelora.families.framer.networks.unet import FramerUNet, is_stock

NETWORK = "unet"
KOHYA_PREFIX = "lora_unet_"


def original_name(layer: str) -> str:
    """A Linear layer's name in the original code: the UNet is diffusers' own class."""
    return layer


def empty_denoiser(base: Path) -> FramerUNet:
    """A base's denoiser on the meta device: layers and shapes from its configuration, no weights.

    A stock SVD UNet is widened, as `load_unet` does it.
    """
    config = FramerUNet.load_config(base / "unet", local_files_only=True)
    if is_stock(config):
        config = config | {"in_channels": config["in_channels"] + 1}
    with torch.device("meta"):
        denoiser: FramerUNet = FramerUNet.from_config(config)
    return denoiser


def idle_layers(layers: list[str]) -> list[str]:
    """Those of a denoiser's layers that can't learn: none."""
    return []

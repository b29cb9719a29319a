"""The files of trained weights: pure functions of tensors, configuration and lineage."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import save
from torch import Tensor

from framelora.digest import canonical_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FULL_CONFIG, FULL_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def adapter_files(tensors: dict[str, Tensor], config: dict[str, Any], lineage: dict[str, Any]) -> dict[str, bytes]:
    """A PEFT folder: file name -> content. The lineage travels in the weights' header, as one sorted JSON value."""
    return {CONFIG: pretty(config), WEIGHTS: weights(tensors, lineage)}


def network_files(tensors: dict[str, Tensor], config: dict[str, Any], lineage: dict[str, Any]) -> dict[str, bytes]:
    """A diffusers model folder of a network that was trained in full."""
    return {FULL_CONFIG: pretty(config), FULL_WEIGHTS: weights(tensors, lineage)}


def pretty(config: dict[str, Any]) -> bytes:
    """Indented JSON with sorted keys."""
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def weights(tensors: dict[str, Tensor], lineage: dict[str, Any]) -> bytes:
    """A safetensors file whose header has one metadata value: several are written in an order that varies."""
    return save(tensors, metadata={"framelora": canonical_json(lineage)})

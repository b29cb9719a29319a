"""PEFT folders: adapter_config.json and adapter_model.safetensors, read and written."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from framelora.adapters.folder import CONFIG, WEIGHTS, adapter_files
from framelora.adapters.state import BadAdapter, LoraLayer, LoraState, check_pairs, listed

NAMES = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_magnitude_vector": "magnitude"}
KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)"
)

PREFIX = "base_model.model."  # of the names of a PeftModel's tensors


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises `BadAdapter` when it is none."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise BadAdapter(f"{path} does not exist") from None
    except Exception as error:
        if type(error).__module__.startswith("safetensors") or isinstance(error, OSError):
            raise BadAdapter(f"{path} is not a safetensors file: {error}") from None
        raise


def read_lineage(metadata: dict[str, str], what: str = "the adapter") -> dict[str, Any]:
    """What framelora wrote into a file's header; empty for files of others. Raises `BadAdapter` for a damaged one."""
    return read_mapping(metadata.get("framelora", "{}"), f"{what}: framelora in its header")


def read_mapping(text: str | bytes, what: str) -> dict[str, Any]:
    """A JSON mapping. Raises `BadAdapter` when the text is none."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadAdapter(f"{what} is not valid JSON: {error}: fetch or export the adapter again") from None
    if not isinstance(value, dict):
        raise BadAdapter(f"{what} holds {type(value).__name__}, not a mapping: fetch or export the adapter again")
    return value


def read_peft(tensors: dict[str, Tensor], config: dict[str, Any], lineage: dict[str, Any], what: str) -> LoraState:
    """An adapter from tensors under peft's names and its configuration.

    Raises:
        BadAdapter: unknown keys, half pairs, or a configuration that is no LoRA's; keys are listed.
    """
    if config.get("peft_type", "LORA") != "LORA":
        raise BadAdapter(f"{what} is a {config['peft_type']} adapter: only LoRA and DoRA are known")
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in sorted(tensors.items()):
        if match := KEY.fullmatch(name):
            parts.setdefault(match["layer"], {})[NAMES[match["part"]]] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise BadAdapter(f"{what}: keys that no LoRA has: {listed(unknown)}")
    check_pairs(parts, ("down", "up"), what)
    if not isinstance(patterns := config.get("alpha_pattern") or {}, dict):
        raise BadAdapter(f"{what}: its configuration has alpha_pattern = {patterns!r}: it must be a mapping")
    layers = {}
    for layer, found in sorted(parts.items()):
        rank = found["down"].shape[0]
        alpha = _pattern(patterns, layer, config.get("lora_alpha"))
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise BadAdapter(f"{what}: its configuration has lora_alpha = {alpha!r} for {layer}: it must be a number")
        alpha = float(alpha)
        if config.get("use_rslora"):
            alpha *= math.sqrt(rank)
        layers[layer] = LoraLayer(found["down"], found["up"], alpha, found.get("magnitude"))
    return LoraState(layers, lineage)


def _pattern(patterns: dict[str, Any], layer: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if layer == pattern or layer.endswith(f".{pattern}"):
            return value
    return default


def read_folder(folder: Path) -> LoraState:
    """Read a PEFT folder. Raises `BadAdapter`."""
    try:
        text = (folder / CONFIG).read_bytes()
    except FileNotFoundError:
        raise BadAdapter(f"{folder} holds no adapter: {CONFIG} is missing") from None
    config = read_mapping(text, str(folder / CONFIG))
    tensors, metadata = read_tensors(folder / WEIGHTS)
    return read_peft(tensors, config, read_lineage(metadata, str(folder)), str(folder))


def peft_config(state: LoraState) -> dict[str, Any]:
    """A LoraConfig, as JSON, that gives each layer its rank and alpha."""
    rank = Counter(layer.rank for layer in state.layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in state.layers.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_dora": state.dora,
        "use_rslora": False,
        "rank_pattern": {name: layer.rank for name, layer in state.layers.items() if layer.rank != rank},
        "alpha_pattern": {name: layer.alpha for name, layer in state.layers.items() if layer.alpha != alpha},
        "target_modules": sorted(state.layers),
    }


def peft_tensors(state: LoraState, prefix: str) -> dict[str, Tensor]:
    """Tensors under peft's names behind a prefix such as `base_model.model.`."""
    tensors = {}
    for name, layer in state.layers.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = layer.down.contiguous()
        tensors[f"{prefix}{name}.lora_B.weight"] = layer.up.contiguous()
        if layer.magnitude is not None:
            tensors[f"{prefix}{name}.lora_magnitude_vector"] = layer.magnitude.contiguous()
    return dict(sorted(tensors.items()))


def folder_files(state: LoraState) -> dict[str, bytes]:
    """A PEFT folder: file name -> content."""
    return adapter_files(peft_tensors(state, PREFIX), peft_config(state), state.lineage)

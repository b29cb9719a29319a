"""Adapters in one safetensors file: diffusers' form, and the form of kohya, EasyAnimate and ComfyUI."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor

from framelora.adapters.peft_folder import peft_config, peft_tensors, read_lineage, read_mapping, read_peft
from framelora.adapters.state import BadAdapter, LoraLayer, LoraState, check_pairs, listed
from framelora.digest import canonical_json

DIFFUSERS_METADATA = "lora_adapter_metadata"
KOHYA_KEY = re.compile(r"(?P<stem>lora_unet_.+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)")


@dataclass(frozen=True)
class Naming:
    """How a model family's layers are called in files.

    Attributes:
        network: the network's name in a diffusers pipeline: the prefix of diffusers' keys.
        kohya_prefix: what stands before a layer's path in kohya's keys.
        original_name: a layer's name in the class of the original code, from its name in diffusers' class.
    """

    network: str
    kohya_prefix: str
    original_name: Callable[[str], str]

    def kohya_stem(self, layer: str) -> str:
        """A layer's key in kohya's form, without the part: its original path with underscores for dots."""
        return self.kohya_prefix + self.original_name(layer).replace(".", "_")


def header_sorted(data: bytes) -> bytes:
    """A safetensors file with its header's entries sorted: the library writes metadata in an order that varies."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def diffusers_file(state: LoraState, naming: Naming) -> bytes:
    """One file as diffusers' pipelines save LoRAs, with the configuration in its metadata."""
    config = {f"{naming.network}.{name}": value for name, value in peft_config(state).items()}
    metadata = {
        "format": "pt",
        "framelora": canonical_json(state.lineage),
        DIFFUSERS_METADATA: json.dumps(config, indent=2, sort_keys=True),
    }
    return header_sorted(save(peft_tensors(state, f"{naming.network}."), metadata=metadata))


def read_diffusers(tensors: dict[str, Tensor], metadata: dict[str, str], naming: Naming, what: str) -> LoraState:
    """An adapter in diffusers' form. Raises `BadAdapter`."""
    prefix = f"{naming.network}."
    foreign = [name for name in tensors if not name.startswith(prefix)]
    if foreign:
        raise BadAdapter(f"{what}: keys of another network than {naming.network}: {listed(foreign)}")
    if DIFFUSERS_METADATA not in metadata:
        raise BadAdapter(f"{what}: {DIFFUSERS_METADATA} is missing in its header, so its alpha is unknown")
    told = read_mapping(metadata[DIFFUSERS_METADATA], f"{what}: {DIFFUSERS_METADATA} in its header")
    config = {name.removeprefix(prefix): value for name, value in told.items()}
    return read_peft(
        {k.removeprefix(prefix): v for k, v in tensors.items()}, config, read_lineage(metadata, what), what
    )


def kohya_file(state: LoraState, naming: Naming) -> bytes:
    """One file with kohya's keys: `PREFIXpath_to_layer.lora_down.weight`, `.lora_up.weight`, `.alpha`.

    Raises:
        BadAdapter: a DoRA adapter; or two layers would get one key.
    """
    if state.dora:
        raise BadAdapter("DoRA has no form with kohya's keys: its change is no low-rank sum; export it as peft")
    tensors: dict[str, Tensor] = {}
    for name, layer in state.layers.items():
        stem = naming.kohya_stem(name)
        if f"{stem}.alpha" in tensors:
            raise BadAdapter(f"two layers are called {stem} with kohya's keys: export it as peft or diffusers")
        tensors[f"{stem}.lora_down.weight"] = layer.down.contiguous()
        tensors[f"{stem}.lora_up.weight"] = layer.up.contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
    metadata = {
        "format": "pt",
        "framelora": canonical_json(state.lineage),
        "ss_network_module": "networks.lora",
    }
    return header_sorted(save(dict(sorted(tensors.items())), metadata=metadata))


def read_kohya(
    tensors: Mapping[str, Tensor], metadata: dict[str, str], naming: Naming, layers: Iterable[str], what: str
) -> LoraState:
    """An adapter with kohya's keys.

    Args:
        tensors: the file's tensors.
        metadata: its header.
        naming: how the family's layers are called.
        layers: the base's Linear layers; underscores can't be told from dots without them.
        what: the file, for messages.

    Raises:
        BadAdapter: keys that are no layer's, half pairs, or a missing alpha; keys are listed.
    """
    known = {naming.kohya_stem(layer): layer for layer in layers}
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in sorted(tensors.items()):
        match = KOHYA_KEY.fullmatch(name)
        if match is None or match["stem"] not in known:
            unknown.append(name)
        else:
            parts.setdefault(match["stem"], {})[match["part"]] = tensor
    if unknown:
        raise BadAdapter(f"{what}: keys of no layer of this base: {listed(unknown)}")
    check_pairs(parts, ("lora_down.weight", "lora_up.weight", "alpha"), what)
    found = {
        known[stem]: LoraLayer(part["lora_down.weight"], part["lora_up.weight"], float(part["alpha"]))
        for stem, part in parts.items()
    }
    return LoraState(dict(sorted(found.items())), read_lineage(metadata, what))

"""The networks of a training step: what of each is trained, and the files of what was trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from framelora.adapters.folder import WEIGHTS, adapter_files, network_files
from framelora.adapters.live import hold_in_float8
from framelora.adapters.lora import adapter_tensors, add_lora, config_dict, start_from
from framelora.adapters.peft_folder import read_folder
from framelora.adapters.state import BadAdapter

if TYPE_CHECKING:
    from framelora.schema.training import Adapter, Train

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def loading_dtype(mode: str, adapter: Adapter, mixed_precision: str) -> torch.dtype:
    """How a base's weights are held: as they compute; fp32 where they are trained, or rewritten by PiSSA."""
    if mode == "full" or (mode == "lora" and adapter.init == "pissa"):
        return torch.float32
    return DTYPES[mixed_precision]


def prepare(
    network: nn.Module, mode: str, adapter: Adapter, targets: Sequence[str], seed: int, base_int8: bool
) -> nn.Module:
    """Make a network ready to be trained: by an adapter (`lora`), as a whole (`full`), or not (`none`).

    Raises:
        ValueError: the adapter's targets do not fit the network.
    """
    network.requires_grad_(mode == "full")
    if base_int8:
        to_int8(network)
    return add_lora(network, adapter, targets, seed) if mode == "lora" else network


def to_int8(network: nn.Module) -> None:
    """Hold the Linear layers of a frozen network in 8 bits; they are quantised when the network goes to its device."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    for name, layer in network.named_children():
        if type(layer) is nn.Linear:
            small = Linear8bitLt(
                layer.in_features, layer.out_features, bias=layer.bias is not None, has_fp16_weights=False
            )
            small.weight = Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
            small.bias = layer.bias
            setattr(network, name, small)
        else:
            to_int8(layer)


def build_networks(family: Any, base: Path, adapter: Adapter, train: Train, earlier: Path | None) -> nn.ModuleDict:
    """Load a base's networks, by name (`unet` is the denoiser), and make them ready to be trained.

    Args:
        family: the family's `loss` part.
        base: folder of the base model.
        adapter: the `adapter` section.
        train: the `train` section.
        earlier: an adapter to start from: a PEFT folder, or a folder with one for each network.

    Raises:
        ValueError: the family has no ControlNet, or the adapter does not fit.
    """
    modes = {"unet": train.unet, "controlnet": train.controlnet}
    dtypes = {name: loading_dtype(mode, adapter, train.mixed_precision) for name, mode in modes.items()}
    networks: dict[str, Any] = {"unet": family.load_denoiser(base, dtypes["unet"])}
    if train.controlnet != "none":
        if not hasattr(family, "load_controlnet"):
            raise ValueError("train.controlnet: this family has no ControlNet: set it to none")
        networks["controlnet"] = family.load_controlnet(networks["unet"], base, dtypes["controlnet"], train.seed)
    for name, network in networks.items():
        if train.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        targets = family.lora_targets(network)
        networks[name] = prepare(network, modes[name], adapter, targets, train.seed, train.base_int8)
        if train.base_fp8:
            hold_in_float8(networks[name], dtypes[name])
    if earlier is not None:
        start_from_adapter(networks, earlier)
    return nn.ModuleDict(networks)


def start_from_adapter(networks: Mapping[str, nn.Module], folder: Path) -> None:
    """Give new adapters the values and the effect of an earlier one.

    Raises:
        ValueError: it does not fit, it is damaged, or there is none.
    """
    begun = False
    for name, network in networks.items():
        paths = [folder / f"{name}_lora", *([folder] if name == "unet" else [])]
        path = next((path for path in paths if (path / WEIGHTS).is_file()), None)
        if is_adapted(network) and path is not None:
            try:
                start_from(cast(Any, network), read_folder(path))
            except BadAdapter as error:
                raise ValueError(f"adapter.start_from: {error}: copy it there again, or name another") from None
            except ValueError as error:
                raise ValueError(f"adapter.start_from: {path} has {error}: train with its targets and rank") from None
            begun = True
    if not begun:
        raise ValueError(f"adapter.start_from: {folder} holds no {WEIGHTS} of what is trained: name a PEFT folder")


def trained_parameters(networks: nn.ModuleDict) -> dict[str, nn.Parameter]:
    """What is trained, by name; a name begins with its network's."""
    return {name: parameter for name, parameter in networks.named_parameters() if parameter.requires_grad}


def adapter_scales(networks: nn.ModuleDict) -> dict[str, dict[str, Any]]:
    """What else than its values decides what an adapter does, for each network that has one."""
    configs = {
        name: cast(Any, network).peft_config["default"] for name, network in networks.items() if is_adapted(network)
    }
    keys = ("lora_alpha", "use_rslora", "use_dora", "init_lora_weights")
    return {name: {key: getattr(config, key) for key in keys} for name, config in configs.items()}


def is_adapted(network: nn.Module) -> bool:
    """Whether a network has an adapter on it."""
    return hasattr(network, "peft_config")


def export(networks: nn.ModuleDict, lineage: dict[str, Any]) -> dict[str, bytes]:
    """The files of what was trained: a PEFT folder `NAME_lora/`, or a diffusers folder `NAME/`, for each network."""
    files: dict[str, bytes] = {}
    for name, network in networks.items():
        if is_adapted(network):
            made = adapter_files(adapter_tensors(network), config_dict(network), lineage)
            files |= {f"{name}_lora/{file}": data for file, data in made.items()}
        elif any(parameter.requires_grad for parameter in network.parameters()):
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
            config = {
                key: value for key, value in json.loads(cast(Any, network).to_json_string()).items() if key[:1] != "_"
            }
            config["_class_name"] = type(network).__name__
            made = network_files(tensors, config, lineage)
            files |= {f"{name}/{file}": data for file, data in made.items()}
    return files


@contextmanager
def with_values(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters have other values for a while (those of a moving average); no values: nothing happens."""
    kept = {name: parameters[name].data for name in values}
    for name, value in values.items():
        parameters[name].data = value
    try:
        yield
    finally:
        for name, value in kept.items():
            parameters[name].data = value

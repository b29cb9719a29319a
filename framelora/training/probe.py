"""Before the first step: does everything that is to be trained get a gradient?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from framelora.digest import draw_seed
from framelora.training.items import Items
from framelora.training.networks import trained_parameters
from framelora.training.validation import Loss


class NoGradient(Exception):
    """Something that is to be trained gets no gradient; names it."""


def layers_without_gradient(
    networks: nn.ModuleDict, items: Items, loss: Loss, accelerator: Accelerator, seed: int
) -> list[str]:
    """Take one gradient of the first item, with LoRA's B drawn at random: where B is zero no A gets a gradient.

    Returns:
        Names of the adapted layers that get none, since nothing of the loss depends on them.

    Raises:
        NoGradient: a whole group gets none: all layers of a network that have one of the targets' names, or a network
            that is trained in full.
    """
    parameters = trained_parameters(networks)
    first = {name: parameter.detach().clone() for name, parameter in parameters.items() if ".lora_B." in name}
    generator = torch.Generator().manual_seed(draw_seed(seed, "probe"))
    with torch.no_grad():
        for name in first:
            noise = torch.randn(parameters[name].shape, generator=generator)
            parameters[name].copy_(0.02 * noise)
    seeds = [draw_seed(seed, "probe", "draws")]
    batch = items.batch([0], seeds, accelerator.device)
    with accelerator.autocast():
        value = loss(networks, batch, seeds, [0.5])
    (value.mean() * (1024 if accelerator.scaler is not None else 1)).backward()
    groups: dict[str, dict[str, bool]] = {}
    for name, parameter in parameters.items():
        alive = parameter.grad is not None and bool((parameter.grad != 0).any())
        layer, adapter_part, _ = name.partition(".lora_")
        network = name.partition(".")[0]
        group = f"{network}: {target_of(layer, networks[network])}" if adapter_part else network
        layer = layer if adapter_part else group
        groups.setdefault(group, {})[layer] = groups.get(group, {}).get(layer, False) or alive
        parameter.grad = None
    with torch.no_grad():
        for name, value in first.items():
            parameters[name].copy_(value)
    idle = [group for group, layers in groups.items() if not any(layers.values())]
    if idle:
        raise NoGradient(", ".join(idle))
    return readable([layer for layers in groups.values() for layer, alive in layers.items() if not alive])


def target_of(layer: str, network: Any) -> str:
    """The adapter's target that a layer was chosen by: `to_out.0` of `down_blocks.1.attentions.0.attn1.to_out.0`."""
    targets = [target for target in network.peft_config["default"].target_modules if f".{layer}".endswith(f".{target}")]
    return max(targets, key=len)


def readable(layers: Sequence[str]) -> list[str]:
    """Layers' names without the wrappers that peft puts around."""
    return [layer.replace(".base_model.model", "") for layer in layers]

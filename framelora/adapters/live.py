"""Adapters on a denoiser without touching its weights: small weights survive that merging into bf16 would lose."""

from __future__ import annotations

import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer as PeftLayer
from torch import nn

from framelora.adapters.peft_folder import PREFIX, peft_config, peft_tensors
from framelora.adapters.state import BadAdapter, LoraState

# Layers that stay exact on a float8 base: adapters, modulations, embeddings of the time, what makes the output.
EXACT = re.compile(r"lora_|norm|time_embed|proj_out")


def put_on(denoiser: nn.Module, state: LoraState, name: str = "default") -> PeftModel:
    """Put an adapter on a denoiser, at weight 1.

    Args:
        denoiser: the denoiser, or what an earlier call made of it: then it has several, of which `set_adapter` chooses.
        state: the adapter.
        name: what it is called there.

    Raises:
        BadAdapter: peft adapted other layers than the adapter's.
    """
    config = peft_config(state)
    for key in ("peft_type", "inference_mode"):
        config.pop(key)
    if isinstance(denoiser, PeftModel):
        model: PeftModel = denoiser
        model.add_adapter(name, LoraConfig(**config))
    else:
        made = get_peft_model(denoiser, LoraConfig(**config), adapter_name=name)
        assert isinstance(made, PeftModel)
        model = made
    found = {
        layer.removeprefix(PREFIX)
        for layer, module in model.named_modules()
        if isinstance(module, PeftLayer) and name in module.lora_A
    }
    if found != set(state.layers):
        raise BadAdapter(f"peft adapts other layers: {sorted(found ^ set(state.layers))[:3]}")
    set_peft_model_state_dict(model, peft_tensors(state, PREFIX), adapter_name=name)
    return model.eval().requires_grad_(False)


def float8_layers(network: nn.Module) -> list[nn.Linear]:
    """The layers that `hold_in_float8` stores so."""
    return [part for name, part in network.named_modules() if type(part) is nn.Linear and not EXACT.search(name)]


def hold_in_float8(network: nn.Module, compute_dtype: torch.dtype) -> int:
    """Store the Linear layers of a frozen network as float8 (e4m3), each upcast while it computes.

    Adapters have to be on the network before: their layers stay as they are. The weights lose up to 6 % each, as in
    EasyAnimate's own `qfloat8`.

    Args:
        network: the network; changed in place.
        compute_dtype: what a layer is upcast to.

    Returns:
        How many layers are stored so.
    """
    from diffusers.hooks import apply_layerwise_casting

    layers = float8_layers(network)
    for layer in layers:
        apply_layerwise_casting(layer, torch.float8_e4m3fn, compute_dtype, skip_modules_pattern=None)
    return len(layers)

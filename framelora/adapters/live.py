"""Adapters on a denoiser without touching its weights: small weights survive that merging into bf16 would lose."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer as PeftLayer
from torch import nn

from framelora.adapters.peft_folder import peft_config, peft_tensors
from framelora.adapters.state import BadAdapter, LoraState


def put_on(denoiser: nn.Module, state: LoraState) -> PeftModel:
    """Put an adapter on a denoiser, at weight 1.

    Raises:
        BadAdapter: peft adapted other layers than the adapter's.
    """
    config = peft_config(state)
    for name in ("peft_type", "inference_mode"):
        config.pop(name)
    model = get_peft_model(denoiser, LoraConfig(**config))
    assert isinstance(model, PeftModel)
    prefix = "base_model.model."
    found = {name.removeprefix(prefix) for name, module in model.named_modules() if isinstance(module, PeftLayer)}
    if found != set(state.layers):
        raise BadAdapter(f"peft adapts other layers: {sorted(found ^ set(state.layers))[:3]}")
    set_peft_model_state_dict(model, peft_tensors(state, prefix))
    return model.eval().requires_grad_(False)

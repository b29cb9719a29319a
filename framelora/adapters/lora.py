"""LoRA on a denoiser, through peft."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

if TYPE_CHECKING:
    from framelora.schema.training import Adapter


def add_lora(denoiser: nn.Module, params: Adapter, default_targets: Sequence[str], seed: int) -> PeftModel:
    """Freeze a denoiser and put a new LoRA on it: A Gaussian, B zero, both fp32 whatever the denoiser's dtype.

    Raises:
        ValueError: a target names no Linear layer of the denoiser.
    """
    targets = list(params.target_modules or default_targets)
    names = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    idle = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)]
    if idle:
        raise ValueError(f"adapter.target_modules: no Linear layer is called {', '.join(idle)}")
    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        target_modules=targets,
        init_lora_weights="gaussian",
    )
    torch.manual_seed(seed)
    model = get_peft_model(denoiser, config)
    assert isinstance(model, PeftModel)
    return model


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors under peft's names, on the CPU."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().clone() for name, tensor in sorted(state.items())}


def config_dict(model: PeftModel) -> dict[str, Any]:
    """The adapter's configuration with sets as sorted lists: peft's own file differs from run to run."""
    config = model.peft_config["default"].to_dict()
    config["inference_mode"] = True
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    result: dict[str, Any] = json.loads(json.dumps(plain, default=str))
    return result


def load_adapter(denoiser: nn.Module, folder: Path) -> PeftModel:
    """Put a saved adapter on a denoiser, at weight 1."""
    return PeftModel.from_pretrained(denoiser, folder, torch_device="cpu").eval()


def set_weight(model: PeftModel, weight: float) -> None:
    """Use the adapter at a weight: it multiplies alpha / rank, so 1 is as trained and 0 is the base."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", weight)

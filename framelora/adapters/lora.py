"""LoRA on a network, through peft: new, saved, loaded, and at a weight."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from framelora.adapters.folder import CONFIG, FULL_WEIGHTS
from framelora.adapters.peft_folder import PREFIX, peft_tensors
from framelora.adapters.state import LoraState

if TYPE_CHECKING:
    from framelora.schema.training import Adapter


def add_lora(denoiser: nn.Module, params: Adapter, default_targets: Sequence[str], seed: int) -> PeftModel:
    """Freeze a network and put a new LoRA on it, fp32 whatever the network's dtype.

    A is Gaussian and B zero; or both are the principal components of each weight, then reduced by them (PiSSA).

    Raises:
        ValueError: a target names no Linear layer of the network.
    """
    targets = list(params.target_modules or default_targets)
    names = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    idle = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)]
    if idle:
        raise ValueError(
            f"adapter.target_modules: no Linear layer is called {', '.join(idle)}: correct it, or set it to null for "
            "the family's own list"
        )
    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        target_modules=targets,
        init_lora_weights=params.init,
        use_rslora=params.use_rslora,
        use_dora=params.use_dora,
    )
    torch.manual_seed(seed)
    model = get_peft_model(denoiser, config)
    assert isinstance(model, PeftModel)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if params.init == "pissa":  # what `adapter_tensors` needs to say the adapter in terms of the original weights
        model.first_lora = {name: tensor.cpu().clone() for name, tensor in lora_state(model).items()}
    return model


def start_from(model: PeftModel, earlier: LoraState) -> None:
    """Give a new adapter the values of an earlier one, so that it has the earlier one's effect.

    Where alpha, rsLoRA or anything else makes another scale of theirs, B takes up the ratio of the two.

    Raises:
        ValueError: the earlier one adapts other layers, or has another rank.
    """
    own, tensors = lora_state(model), peft_tensors(earlier, PREFIX)
    differing = sorted(name for name in own.keys() | tensors.keys() if shape(own, name) != shape(tensors, name))
    if differing:
        raise ValueError(f"other layers or another rank ({len(differing)} tensors differ, the first is {differing[0]})")
    layers = {name: module for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)}
    ratios = {
        f"{PREFIX}{name}.lora_B.weight": layer.scale / layers[name].scaling["default"]
        for name, layer in earlier.layers.items()
    }
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(ratios.get(name, 1.0) * tensors[name].float())


def shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    """Shape of a tensor that may not be there."""
    return tensors[name].shape if name in tensors else None


def lora_state(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's own tensors, under peft's names, sorted."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return dict(sorted(state.items()))


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors under peft's names, on the CPU, for the original base.

    A PiSSA adapter works on a reduced base W - s B0 A0, so that at any weight but 1 it would be neither base nor
    adapter. It is saved as what it changes, s (B A - B0 A0): a LoRA of twice the rank, `[A; A0]` and `[B, -B0]`.
    """
    state = {name: tensor.detach().cpu().clone() for name, tensor in lora_state(model).items()}
    first = getattr(model, "first_lora", None)
    if first is None:
        return state
    return {
        name: torch.cat([tensor, first[name]], dim=0) if "lora_A" in name else torch.cat([tensor, -first[name]], dim=1)
        for name, tensor in state.items()
    }


def config_dict(model: PeftModel) -> dict[str, Any]:
    """The adapter's configuration with sets as sorted lists: peft's own file differs from run to run."""
    peft_config = model.peft_config["default"]
    config = peft_config.to_dict()
    config["inference_mode"] = True
    if getattr(model, "first_lora", None) is not None:  # see `adapter_tensors`
        scale = peft_config.lora_alpha / (peft_config.r**0.5 if peft_config.use_rslora else peft_config.r)
        rank = 2 * peft_config.r
        config |= {"r": rank, "lora_alpha": scale * rank, "use_rslora": False, "init_lora_weights": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    result: dict[str, Any] = json.loads(json.dumps(plain, default=str))
    return result


def load_adapter(denoiser: nn.Module, folder: Path) -> Any:  # a PeftModel, or the denoiser itself
    """Put saved weights on a denoiser, at weight 1: an adapter, or a denoiser trained in full (`unet/` in the folder).

    A folder that holds neither (of a run that trained a ControlNet alone) leaves the denoiser as it is.
    """
    if (folder / "unet").is_dir():
        tensors = load_file(folder / "unet" / FULL_WEIGHTS)
        ends = {name: (value.detach().cpu().clone(), tensors[name]) for name, value in denoiser.named_parameters()}
        denoiser.full_ends = ends  # type: ignore[assignment]
        set_weight(denoiser, 1.0)
        return denoiser.eval()
    if not (folder / CONFIG).is_file():
        return denoiser.eval()
    return PeftModel.from_pretrained(denoiser, folder, torch_device="cpu").eval()


def set_weight(model: nn.Module, weight: float) -> None:
    """Use the adapter at a weight: it multiplies alpha / rank, so 1 is as trained and 0 is the base.

    DoRA normalises the sum of weight and adapter, so no factor on the adapter gives what lies between: there the layer
    gets W + weight (W' - W), W' its weight with the whole adapter, computed in fp32. The same goes for a network that
    was trained in full.
    """
    ends: dict[str, tuple[Tensor, Tensor]] = getattr(model, "full_ends", {})
    for name, parameter in model.named_parameters() if ends else ():
        original, whole = (end.float() for end in ends[name])
        parameter.data.copy_(original + weight * (whole - original))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            if module.use_dora.get("default", False):
                set_dora_weight(module, weight)
            else:
                module.set_scale("default", weight)


def set_dora_weight(layer: Any, weight: float) -> None:
    """Merge a DoRA layer into its weight W as W + weight (W' - W)."""
    base = layer.get_base_layer()
    if not layer.merged:
        original = base.weight.data.clone()
        base.weight.data = original.float()
        layer.merge(adapter_names=["default"])
        layer.dora_ends = (original, base.weight.data)
    original, whole = layer.dora_ends
    base.weight.data = (original.float() + weight * (whole - original.float())).to(original.dtype)

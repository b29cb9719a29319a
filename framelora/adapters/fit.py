"""Whether a saved adapter belongs on a network: said in one line, before peft fails in many."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from framelora.adapters.folder import WEIGHTS


def misfit(network: nn.Module, folder: Path) -> str | None:
    """Why the LoRA in a PEFT folder is not for a network, or None if every matrix finds its layer.

    Args:
        network: the network it would be put on, without adapters.
        folder: has `adapter_model.safetensors`.
    """
    layers = dict(network.named_modules())
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        return f"its {WEIGHTS} can't be read ({error})"
    matrices = {name: shape for name, shape in shapes.items() if ".lora_A." in name or ".lora_B." in name}
    if not matrices:
        return f"its {WEIGHTS} holds no LoRA matrices"
    for name, shape in matrices.items():
        layer = layers.get(name.removeprefix("base_model.model.").split(".lora_")[0])
        wanted = "in_features" if ".lora_A." in name else "out_features"
        if getattr(layer, wanted, None) != shape[1 if wanted == "in_features" else 0]:
            return f"it has {name} of shape {list(shape)}, and the base no such layer"
    return None

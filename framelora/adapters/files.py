"""An adapter from whatever form it has, and into whatever form is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from framelora.adapters.peft_folder import folder_files, read_folder, read_tensors
from framelora.adapters.single_file import Naming, diffusers_file, kohya_file, read_diffusers, read_kohya
from framelora.adapters.state import BadAdapter, LoraState, Shapes, check_fits

Form = Literal["peft", "diffusers", "kohya"]
FORMS: tuple[Form, ...] = ("peft", "diffusers", "kohya")


def read_adapter(path: Path, naming: Naming, shapes: Callable[[], Shapes]) -> LoraState:
    """Read an adapter in any form, and see that it fits the base.

    Args:
        path: a PEFT folder, or a safetensors file in diffusers' or kohya's form.
        naming: how the family's layers are called.
        shapes: gives the base's Linear layers.

    Raises:
        BadAdapter: it is none, is damaged, or is for another model.
    """
    if path.is_dir():
        state = read_folder(path)
    else:
        tensors, metadata = read_tensors(path)
        if any(name.startswith("lora_unet_") for name in tensors):
            state = read_kohya(tensors, metadata, naming, shapes(), str(path))
        elif any(".lora_A." in name for name in tensors):
            state = read_diffusers(tensors, metadata, naming, str(path))
        else:
            raise BadAdapter(f"{path} is no LoRA: it has neither kohya's keys nor diffusers'")
    check_fits(state, shapes(), str(path))
    return state


def adapter_bytes(state: LoraState, form: Form, naming: Naming) -> dict[str, bytes]:
    """An adapter's files by name; a single file has the name ''. Raises `BadAdapter` for what the form can't say."""
    if form == "peft":
        return folder_files(state)
    return {"": kohya_file(state, naming) if form == "kohya" else diffusers_file(state, naming)}

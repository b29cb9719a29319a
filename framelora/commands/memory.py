"""`framelora doctor --memory` and `--preset`: what training would take, as the FramerTurbo guide's table has it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from framelora.commands.preset import merged
from framelora.console import UserError, progress, relative, say
from framelora.files import write_bytes
from framelora.media.buckets import allowed_sizes
from framelora.params import Params, load_params
from framelora.source import load_part
from framelora.training.memory import Memory, estimate

PARAMS = Path("params.yaml")
WIDTH = 110  # columns of the table in a file or a pipe


def preset_params(preset: Path) -> Params:
    """params.yaml with the values of a preset, without writing it. Raises `UserError` when it does not fit."""
    with tempfile.TemporaryDirectory() as folder:
        write_bytes(Path(folder) / PARAMS.name, merged(PARAMS, preset))
        try:
            return load_params(Path(folder) / PARAMS.name)
        except UserError as error:
            raise UserError(f"{relative(preset)} does not fit: {error}") from None


def show(params: Params) -> None:
    """Print the estimates for a configuration and for the guide's others, on a GPU."""
    window = largest_window(params)
    rows = list(configurations(params))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(params.model.base)
        if not base.is_dir():
            base = Path(folder)
            load_part(params.model.family, "footprint").write_published(base)
            say(f"{params.model.base} does not exist: the sizes are those of the published model")
        found = [(name, memory_of(changed, base, window)) for name, changed in progress(rows, "memory", len(rows))]
    size = f"{window['num_frames']} frames of {window['width']}x{window['height']}"
    train = params.train
    title = f"memory of training, GiB: {train.train_batch_size} x {size}, mixed_precision: {train.mixed_precision}"
    table = Table(title=title, title_justify="left")
    table.add_column("configuration")
    for column in ("trained", "weights", "gradients", "optimizer", "activations", "peak"):
        table.add_column(column, justify="right")
    for name, memory in found:
        parts = (memory.frozen + memory.trained, memory.gradients, memory.optimizer, memory.activations, memory.peak)
        table.add_row(name, f"{memory.parameters:,}", *(f"{part / 2**30:.2f}" for part in parts))
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    if found[0][1].host:
        say(f"train.offload_optimizer: {found[0][1].host / 2**30:.2f} GiB in the CPU's memory")
    say("Not counted: the GPU's context, workspaces of its libraries, and what its allocator wastes.")


def memory_of(params: Params, base: Path, window: dict[str, int], *, gpu: bool = True) -> Memory:
    """The estimate for a configuration. Raises `UserError` when the adapter does not fit the network."""
    parts = {name: load_part(params.model.family, name) for name in ("loss", "keys", "footprint")}
    try:
        return estimate(parts, base, params.family, params.adapter, params.train, window, gpu=gpu)
    except ValueError as error:
        raise UserError(f"{error}") from None


def largest_window(params: Params) -> dict[str, int]:
    """Frames, width and height of the windows with the most pixels."""
    sizes = [tuple(map(int, text.split("x"))) for text in allowed_sizes(params.extract)]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return {"num_frames": params.pair.num_frames, "width": width, "height": height}


def configurations(params: Params) -> Iterator[tuple[str, Params]]:
    """This configuration, the same with the other choice of gradient checkpointing, and those of the guide's table."""
    other = not params.train.gradient_checkpointing
    yield name_of(params), params
    if not params.train.base_fp8:  # which goes with it only
        yield f"{'with' if other else 'without'} gradient checkpointing", changed(params, gradient_checkpointing=other)
    has_controlnet = hasattr(load_part(params.model.family, "loss"), "load_controlnet")
    ranks = (params.adapter.rank, 2 * params.adapter.rank)
    wanted = [({"unet": "lora", "controlnet": "none"}, rank) for rank in ranks]
    wanted += [({"unet": "lora", "controlnet": "lora"}, ranks[0])] if has_controlnet else []
    wanted.append(({"unet": "full", "controlnet": "none"}, ranks[0]))
    for modes, rank in wanted:
        variant = changed(params, rank=rank, **modes)
        if name_of(variant) != name_of(params):
            yield name_of(variant), variant


def changed(params: Params, rank: int | None = None, **train: Any) -> Params:
    """A configuration with other values of `train`, and another rank."""
    if train.get("unet") == "full":
        train |= {"base_int8": False, "base_fp8": False}
    sections: dict[str, Any] = {"train": params.train.model_copy(update=train)}
    sections["adapter"] = params.adapter.model_copy(update={"rank": rank or params.adapter.rank})
    return params.model_copy(update=sections)


def name_of(params: Params) -> str:
    """A configuration in the guide's words."""
    network = load_part(params.model.family, "keys").NETWORK
    denoiser = {"unet": "UNet"}.get(network, network)
    train = params.train
    if train.unet == "full" and train.controlnet == "none":
        return "Full fine-tuning"
    parts = {denoiser: train.unet, "ControlNet": train.controlnet}
    named = [f"{name}{' (full)' if mode == 'full' else ''}" for name, mode in parts.items() if mode != "none"]
    return " + ".join([f"LoRA (rank={params.adapter.rank})"] * ("lora" in parts.values()) + named)

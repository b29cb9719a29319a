"""Train the adapter on cached latents. No VAE and no encoder is built in this process.

Reads data/pairs_{train,val}.parquet, data/latents_{train,val}.parquet and the base model. Writes models/adapter/ (a
PEFT folder) and reports/train/. A finished run is a cell: going back to earlier parameters publishes it again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import torch
import typer

from framelora import files
from framelora.adapters.folder import WEIGHTS, adapter_files
from framelora.base_model import fingerprint
from framelora.cells.fill import Computed, Filling, ensure
from framelora.cells.store import Cell, open_store, repository_root
from framelora.compute import configure_torch, pack, unpack
from framelora.console import UserError, command, say, warn
from framelora.dataset.tables import LatentsReader, read_windows
from framelora.families.base import Window
from framelora.params import Params, load_params
from framelora.source import load_part, source_digest
from framelora.versions import versions

PACKAGES = ("torch", "diffusers", "peft", "accelerate")
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> None:
    """Train, or publish the run that was trained before with the same inputs."""
    params = load_params()
    device = configure_torch()
    if params.train.mixed_precision == "fp16" and device.type == "cpu":
        raise UserError("train.mixed_precision: fp16 needs a GPU: set it to bf16 or no")
    store = open_store()
    windows = {split: read_windows(Path(f"data/pairs_{split}.parquet")) for split in ("train", "val")}
    latents = {split: LatentsReader(store, [Path(f"data/latents_{split}.parquet")]) for split in windows}
    cell = Cell("train/adapter", "adapter", inputs(params, windows, latents, device.type))

    filling = Filling(store, "train")
    filling.fill([cell], lambda cell: run(cell, params, windows, latents))
    filling.close()
    stored, payload = store.read(cell.kind, cell.key)
    publish(cell, unpack(payload), stored.meta, params)


def inputs(
    params: Params, windows: dict[str, list[Window]], latents: dict[str, LatentsReader], device: str
) -> dict[str, Any]:
    """Everything that can change the adapter's bytes or the loss curves."""
    family = f"framelora.families.{params.model.family}.loss"
    return {
        "windows": {split: [vars(window) for window in windows[split]] for split in windows},
        "latents": {
            split: sorted([*unit, digest] for unit, digest in latents[split].digests.items()) for split in latents
        },
        "base": fingerprint(Path(params.model.base)),
        "adapter": params.adapter.model_dump(),
        "train": params.train.model_dump(exclude={"checkpointing_steps"}),
        "family": [params.family.conditioning.model_dump(), params.family.objective.model_dump()],
        "device": device,
        "code": [source_digest(name) for name in ("framelora.training.loop", "framelora.adapters.lora", family)],
        "versions": versions(*PACKAGES),
    }


def run(cell: Cell, params: Params, windows: dict[str, list[Window]], latents: dict[str, LatentsReader]) -> Computed:
    """Train; goes on from the last checkpoint of this very cell if there is one."""
    from framelora.adapters.lora import adapter_tensors, add_lora, config_dict
    from framelora.training.checkpoint import Checkpoints
    from framelora.training.loop import Diverged, train

    family = load_part(params.model.family, "loss")
    base = Path(params.model.base)
    for reader in latents.values():
        for kind, keys in reader.by_kind().items():
            ensure(reader.store, kind, keys, "stages.encode")
    state = repository_root() / ".state" / cell.key
    with only_one(state):
        if latents["train"].store.peek(cell.kind, cell.key) is not None:
            return  # the process that held the lock has finished this very run
        denoiser = family.load_denoiser(base, DTYPES[params.train.mixed_precision])
        if params.train.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        try:
            model = add_lora(denoiser, params.adapter, family.lora_targets(denoiser), params.train.seed)
        except ValueError as error:
            raise UserError(f"{error}: correct it, or set it to null for the family's own list") from None
        checkpoints = Checkpoints(state)
        try:
            history = train(
                model,
                items(family, windows["train"], latents["train"], params),
                items(family, windows["val"], latents["val"], params),
                lambda model, batch, seeds: family.loss(model, batch, seeds, base, params.family),
                params.train,
                checkpoints,
            )
        except Diverged as error:
            raise UserError(f"{error}: lower train.learning_rate, or look at these items in the report") from None
        yield cell, pack(adapter_tensors(model)), {"config": config_dict(model), "history": history}
        checkpoints.clear()


def items(family: Any, windows: list[Window], latents: LatentsReader, params: Params) -> Any:
    """Windows as the loop's `Items`. Those of one frame size and length share batches."""
    from framelora.training.loop import Items

    base = Path(params.model.base)

    def read(number: int) -> dict[str, torch.Tensor]:
        item: dict[str, torch.Tensor] = family.read_window(windows[number], latents.read, base, params.family)
        return item

    return Items(
        ids=[window.pair for window in windows],
        shapes=[(window.num_frames, window.height, window.width) for window in windows],
        read=functools.lru_cache(maxsize=256)(read),
    )


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold the lock of a run: a killed `dvc` leaves its child training, and two must not write one state."""
    state.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{state}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        warn("train: another process trains this very run: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def publish(cell: Cell, tensors: dict[str, torch.Tensor], meta: dict[str, Any], params: Params) -> None:
    """Write the adapter and the curves as outs."""
    lineage = {
        "cell": cell.key,
        "base": cell.inputs["base"],
        "trained_steps": params.train.max_train_steps,
        "adapter": cell.inputs["adapter"],
        "versions": cell.inputs["versions"],
    }
    files.replace_folder(Path("models/adapter"), adapter_files(tensors, meta["config"], lineage))
    history = pd.DataFrame(meta["history"])
    steps = history[history.step > 0]
    curves = {"loss.tsv": steps[["step", "loss", "learning_rate", "grad_norm"]]}
    summary = {
        "cell": cell.key,
        "versions": cell.inputs["versions"],
        "steps": params.train.max_train_steps,
        "trained_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "adapter_bytes": (Path("models/adapter") / WEIGHTS).stat().st_size,
        "final_loss": round(float(steps.loss.iloc[-1]), 6),
    }
    measured = history.dropna(subset="validation_loss") if "validation_loss" in history else history[:0]
    if len(measured):
        curves["validation.tsv"] = measured[["step", "validation_loss"]]
        summary["validation_loss_base"] = round(float(measured.validation_loss.iloc[0]), 6)
        summary["validation_loss"] = round(float(measured.validation_loss.iloc[-1]), 6)
    tables = {name: table.to_csv(sep="\t", index=False, float_format="%.6g").encode() for name, table in curves.items()}
    files.replace_folder(Path("reports/train"), tables)
    files.write_json(Path("reports/train/run.json"), summary)
    validation = (
        f", validation loss {summary['validation_loss_base']:.4f} -> {summary['validation_loss']:.4f}"
        if len(measured)
        else ""
    )
    say(f"train: {summary['steps']} steps, {summary['trained_parameters']:,} parameters{validation}")


if __name__ == "__main__":
    typer.run(command(main))

"""Train on cached latents: an adapter, or whole networks. No VAE and no encoder is built in this process.

Reads data/pairs_{train,val}.parquet, data/latents_{train,val}.parquet, the base model and models/start/. Writes
models/adapter/ (a PEFT folder), models/checkpoints/ and reports/train/. A finished run is kept as cells: going back to
earlier parameters publishes it again.

Under `train.latents: live` the windows are encoded here instead, from data/frames.parquet and data/captions.parquet.
Neither is a dependency of the stage: the cell keys in the index of latents hold all that the windows need of them, the
frames' digests and the captions, so a test clip that is added still trains nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from framelora import files
from framelora.base_model import fingerprint
from framelora.cells.fill import Computed, Filling, ensure
from framelora.cells.store import Cell, Store, open_store, repository_root
from framelora.compute import configure_torch
from framelora.console import UserError, command, say, warn
from framelora.dataset.tables import (
    LatentsReader,
    at_train_sizes,
    ensure_frames,
    read_captions,
    read_given_tracks,
    read_shots,
    read_windows,
    with_given_tracks,
)
from framelora.digest import canonical_json, sha256
from framelora.families.base import ReadUnit
from framelora.media.lossless import decode_frames
from framelora.params import Params, load_params
from framelora.source import load_part, source_digest
from framelora.training.checkpoint import (
    BEST,
    STATE,
    Checkpoint,
    Checkpoints,
    DamagedCheckpoint,
    read_checkpoint,
    read_files,
)
from framelora.training.items import Items, run_length
from framelora.training.live import LiveReader
from framelora.training.outs import (
    adapter_folder,
    checkpoints_folder,
    pack_files,
    report_folder,
    single_files,
    unpack_files,
)
from framelora.training.preflight import check_parameters, checkpoint_to_resume, starting_folder
from framelora.training.processes import launched, only_one, start_processes
from framelora.training.stopped import noting_a_stop
from framelora.versions import versions

PACKAGES = ("torch", "diffusers", "peft", "accelerate")
# They tell how a run is watched, and change no byte of what it makes.
NOT_IN_KEY = {"report_to", "publish", "single_files"}


class Run:
    """A training run: its inputs, its cells, and where its state lies until it is finished."""

    def __init__(self, params: Params, store: Store, device: str) -> None:
        self.params = params
        self.store = store
        self.base = Path(params.model.base)
        self.family = load_part(params.model.family, "loss")
        self.live = params.train.latents == "live"
        self.pseudo = pseudo_middles(Path("data/pairs_train.parquet"))
        kinds = load_part(params.model.family, "units").TRAIN_KINDS
        self.windows = {split: read_windows(Path(f"data/pairs_{split}.parquet"), kinds) for split in ("train", "val")}
        self.windows["train"] = at_train_sizes(self.windows["train"], params)
        self.latents = {split: LatentsReader(store, [Path(f"data/latents_{split}.parquet")]) for split in self.windows}
        self.items = self.all_items(device)
        if not self.items["train"].ids:
            raise UserError("data/pairs_train.parquet holds no window: add clips, or lower pair.test_fraction")
        if params.train.publish == "best" and not self.items["val"].ids:
            raise UserError("train.publish: best needs validation windows: raise pair.val_fraction, or set it to final")
        self.length = run_length(self.items["train"].shapes, params.train)
        self.resumed = self.checkpoint_of_another_run()
        self.final = Cell("train/adapter", "adapter", self.inputs(device))
        self.state = repository_root() / ".state" / self.final.key

    def checkpoint_of_another_run(self) -> Checkpoint | None:
        """What train.resume_from_checkpoint names. Its run's best weights are not at hand, so a new best is sought."""
        name = self.params.train.resume_from_checkpoint
        if name is None:
            return None
        folder = checkpoint_to_resume(name)
        try:
            checkpoint = read_checkpoint(folder)
        except DamagedCheckpoint as damage:
            raise UserError(f"train.resume_from_checkpoint: {folder}: {damage}: copy it there again") from None
        return dataclasses.replace(checkpoint, scalars={**checkpoint.scalars, "best": None})

    def inputs(self, device: str) -> dict[str, Any]:
        """Everything that can change the weights' bytes or the loss curves."""
        params = self.params
        modules = ["framelora.training.loop", "framelora.adapters.lora"]
        modules += ["framelora.training.live", "framelora.media.lossless"] if self.live else []
        units = load_part(params.model.family, "units")
        earlier, resumed = params.adapter.start_from, params.train.resume_from_checkpoint
        started = [
            None if earlier is None else starting_folder(earlier),
            None if resumed is None else checkpoint_to_resume(resumed),
        ]
        return {
            "windows": {split: [vars(window) for window in windows] for split, windows in self.windows.items()},
            "latents": {
                # The bytes that are read; live, all that decides what the same encoders make.
                split: sorted([*unit, it] for unit, it in (reader.cells if self.live else reader.digests).items())
                for split, reader in self.latents.items()
            },
            "base": fingerprint(self.base),
            "adapter": params.adapter.model_dump(exclude={"start_from"}),
            "train": params.train.model_dump(exclude=NOT_IN_KEY | {"resume_from_checkpoint"}),
            "start": [None if folder is None else files.folder_digests(folder) for folder in started],
            "family": units.train_inputs(self.base, params.family, params.train.controlnet != "none"),
            "device": device,
            "code": [source_digest(name) for name in (*modules, f"framelora.families.{params.model.family}.loss")],
            "versions": versions(*PACKAGES),
        }

    def cells(self) -> dict[str, Cell]:
        """All cells of the run, by the name of their folder: the final weights, the best, the newest checkpoints."""
        train = self.params.train
        first = 1 if self.resumed is None else self.resumed.step + 1
        steps = [step for step in range(first, self.length.steps) if step % train.checkpointing_steps == 0]
        names = [f"checkpoint-{step}" for step in steps[len(steps) - min(train.checkpoints_total_limit, len(steps)) :]]
        names += ["best"] if self.items["val"].ids else []
        others = {name: Cell("train/checkpoint", name, {"run": self.final.key, "name": name}) for name in names}
        return {"final": self.final, **others}

    def all_items(self, device: str) -> dict[str, Items]:
        """The loop's items, by split."""
        if not self.live:
            return {split: self.items_of(split, reader.read) for split, reader in self.latents.items()}
        reader = self.live_reader(device)
        return {split: self.items_of(split, reader.read) for split in self.windows}

    def items_of(self, split: str, read: ReadUnit) -> Items:
        """Windows as the loop's items. Those of one kind, frame size and length share batches."""
        windows = self.windows[split]
        return Items(
            ids=[window.pair for window in windows],
            shapes=[(window.kind, window.num_frames, window.height, window.width) for window in windows],
            read=lambda number, seed: self.family.read_window(
                windows[number], read, self.base, self.params.family, seed
            ),
        )

    def live_reader(self, device: str) -> LiveReader:
        """Encodes windows in this process."""
        windows = [window for split in self.windows.values() for window in split]
        table, given = self.shots(), read_given_tracks()
        part = load_part(self.params.model.family, "units")
        units = part.plan_units(table.reset_index(), {"train": windows}, read_captions(), self.base, self.params.family)
        return LiveReader(
            [with_given_tracks(unit, table, given) for unit in units],
            encoder=lambda: load_part(self.params.model.family, "encode").Encoder(
                self.base, self.params.family, torch.device(device)
            ),
            frames=lambda shot: decode_frames(self.store.read(*table.loc[shot, ["cell_kind", "cell"]])[1]),
            fresh=getattr(part, "fresh_unit", None),
        )

    def shots(self) -> pd.DataFrame:
        """The rows of `read_shots` that the windows need."""
        needed = {shot for split in self.windows.values() for window in split for shot, _ in window.ends}
        return read_shots().loc[sorted(needed)]

    def compute(self, _: Cell) -> Computed:
        """Train, from the last checkpoint of this very run if there is one; yields all cells of the run."""
        if self.live:
            ensure_frames(self.store, self.shots())
        for reader in [] if self.live else self.latents.values():
            for kind, keys in reader.by_kind().items():
                ensure(reader.store, kind, keys, "stages.encode")
        cells = self.cells()
        with only_one(self.state) as lock:
            if all(self.store.peek(cell.kind, cell.key) is not None for cell in cells.values()):
                return  # the process that held the lock has finished this very run
            checkpoints = Checkpoints(self.state, self.params.train.checkpoints_total_limit)
            checkpoints.tidy()
            count = self.params.train.num_processes
            if count == 1:
                self.train(checkpoints)
            else:
                start_processes(["-m", "stages.train", "--worker"], count, lock)
            final = read_files(self.state / "final")
            best = json.loads(final[STATE])["best"]
            for name, cell in cells.items():
                yield cell, pack_files(final if name == "final" else self.files_of(name, best)), {}
            checkpoints.clear()

    def files_of(self, name: str, best: Mapping[str, Any]) -> dict[str, bytes]:
        """The files of a checkpoint of the finished run."""
        step = best["step"] if name == "best" else int(name.rpartition("-")[2])
        return read_files(self.state / f"{name.partition('-')[0]}-{step:08d}")

    def train(self, checkpoints: Checkpoints) -> None:
        """Train in this process, alone or as one of several."""
        from framelora.training.session import Session

        start, problems = checkpoints.latest()
        first = os.environ.get("RANK", "0") == "0"
        for problem in problems if first else []:
            warn(f"train: {problem}: not used")
        if start is not None and start.step == self.length.steps:
            return
        if start is not None and first:
            warn(f"train: going on from step {start.step}")
        elif start is None:
            start = self.resumed
        logs = repository_root() / "logs" / self.final.key[:12]
        Session(self.params, self.family, self.base, logs).train(self.items, checkpoints, start, self.lineage())

    def lineage(self) -> dict[str, Any]:
        """What saved weights tell about their origin: parameters, and digests of what else they came of."""
        inputs = self.final.inputs
        return {
            "cell": self.final.key,
            "data": sha256(canonical_json([inputs["windows"], inputs["latents"], inputs["start"]]).encode()),
            "source": sha256(canonical_json(inputs["code"]).encode()),
            "model": {"family": self.params.model.family, **inputs["family"]},
            **{name: inputs[name] for name in ("base", "adapter", "train", "versions")},
            **({"pseudo_middles": self.pseudo} if self.pseudo else {}),
        }

    def publish(self) -> None:
        """Write the outs from the run's cells."""
        contents = {name: unpack_files(self.store.read(cell.kind, cell.key)[1]) for name, cell in self.cells().items()}
        shares = self.params.train.validation_levels
        levels = [self.family.noise_level((n + 0.5) / shares, self.params.family) for n in range(shares)]
        report = report_folder(contents["final"], self.final.key, self.final.inputs["versions"], levels)
        files.replace_folder(Path("models/adapter"), adapter_folder(contents[self.params.train.publish]))
        checkpoints = checkpoints_folder(contents)
        if self.params.train.single_files:
            checkpoints |= single_files(contents, load_part(self.params.model.family, "keys"))
        files.replace_folder(Path("models/checkpoints"), checkpoints)
        files.replace_folder(Path("reports/train"), report)
        summary = json.loads(report["run.json"])
        validation = ""
        if "best" in summary:
            best = json.loads(contents["best"][BEST])
            validation = f", validation loss {summary['validation_loss_base']:.4f} -> {summary['validation_loss']:.4f}"
            validation += f", best {best['validation_loss']:.4f} at step {best['step']}"
        say(f"train: {summary['steps']} steps, {summary['trained_parameters']:,} parameters{validation}")


def pseudo_middles(path: Path) -> dict[str, int]:
    """How many training windows have made middles, by the method that made them."""
    made = files.read_table(path).query("pseudo != ''")
    return {str(method): int(count) for method, count in made.pseudo.value_counts().sort_index().items()}


def main(
    worker: Annotated[bool, typer.Option(help="Be one of several processes that torchrun started.")] = False,
) -> None:
    """Train, or publish the run that was trained before with the same inputs."""
    params = load_params()
    check_parameters(params)
    device = configure_torch(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    run = Run(params, open_store(), device.type)
    if worker:
        run.train(Checkpoints(run.state, params.train.checkpoints_total_limit))
        return
    if launched():
        raise UserError("the stage starts its processes itself (train.num_processes); on several machines add --worker")
    filling = Filling(run.store, "train")
    with noting_a_stop():
        filling.fill(list(run.cells().values()), run.compute)
    filling.close()
    with only_one(run.state):  # two processes of one run write the same outs
        run.publish()


if __name__ == "__main__":
    typer.run(command(main))

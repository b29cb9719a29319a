"""Checkpoints of a run: folders of safetensors and JSON, whole or not there.

checkpoint-00000020/   the newest ones; at least two, so that a damaged one costs little
    unet_lora/         what was trained so far, as others load it (a PEFT or diffusers folder for each network)
    state/             what going on needs: values, moving average, optimizer, history
best-00000010/         the weights of the lowest validation loss so far
final/                 as a checkpoint, after the last step
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from framelora.digest import sha256

KEEP = 2  # the newest, and one before it in case a disk loses the newest
STATE, BEST = "state/state.json", "best.json"
Files = Mapping[str, bytes]


class DamagedCheckpoint(Exception):
    """The folder is no whole checkpoint; says why."""


@dataclass(frozen=True)
class Checkpoint:
    """State after an optimizer step."""

    step: int
    tensors: dict[str, dict[str, Tensor]]  # `parameters`, `average` and `optimizer`, each by name
    scalars: dict[str, Any]  # JSON: history, best step, numbers of the optimizer, loss scaler

    def files(self, exported: Files) -> dict[str, bytes]:
        """The checkpoint as files, beside those of what was trained. The state knows the digests of all others."""
        files = dict(exported)
        for name, tensors in self.tensors.items():
            if tensors:
                files[f"state/{name}.safetensors"] = save({key: value.contiguous() for key, value in tensors.items()})
        digests = {name: sha256(data) for name, data in sorted(files.items())}
        state = {"step": self.step, "files": digests, **self.scalars}
        return files | {STATE: json.dumps(state, sort_keys=True).encode()}


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing or is not what was written.
    """
    try:
        scalars = json.loads((folder / STATE).read_bytes())
        digests, step = scalars.pop("files"), scalars.pop("step")
        contents = {name: (folder / name).read_bytes() for name in digests}
    except (OSError, ValueError, KeyError) as error:
        raise DamagedCheckpoint(f"it is no whole checkpoint ({error})") from None
    for name, data in contents.items():
        if sha256(data) != digests[name]:
            raise DamagedCheckpoint(f"{name} is not what was written")
    tensors = {
        name: load(contents[f"state/{name}.safetensors"]) if f"state/{name}.safetensors" in contents else {}
        for name in ("parameters", "average", "optimizer")
    }
    return Checkpoint(step, tensors, scalars)


def read_files(folder: Path) -> dict[str, bytes]:
    """All files of a folder: path inside it -> content."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class Checkpoints:
    """The checkpoints of one training cell, in a folder of their own outside every out.

    Args:
        folder: the folder.
        limit: how many of the newest to keep.
    """

    def __init__(self, folder: Path, limit: int = KEEP) -> None:
        self.folder = folder
        self.limit = max(limit, KEEP)

    def save(self, checkpoint: Checkpoint, exported: Files, final: bool = False) -> None:
        """Write a checkpoint, then drop what is not needed any more."""
        name = "final" if final else f"checkpoint-{checkpoint.step:08d}"
        self._write(name, checkpoint.files(exported))
        folders = self.folders()
        for old in folders[: -self.limit]:
            self._remove(old)
        # A run that goes on from the oldest checkpoint needs the best of that time.
        oldest = json.loads((folders[-self.limit :] or [self.folder / name])[0].joinpath(STATE).read_bytes())["best"]
        for old in self.folder.glob("best-*"):
            if step_of(old) < (oldest or {"step": 0})["step"]:
                self._remove(old)

    def save_best(self, step: int, validation_loss: float, exported: Files) -> None:
        """Write the weights of the lowest validation loss so far."""
        note = json.dumps({"step": step, "validation_loss": validation_loss}, sort_keys=True).encode()
        self._write(f"best-{step:08d}", {**exported, BEST: note})

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and what is wrong with newer ones."""
        problems: list[str] = []
        final = self.folder / "final"
        for folder in [*([final] if final.is_dir() else []), *reversed(self.folders())]:
            try:
                return read_checkpoint(folder), problems
            except DamagedCheckpoint as damage:
                problems.append(f"{folder.name}: {damage}")
        return None, problems

    def tidy(self) -> None:
        """Remove parts that a killed writer left. Call it before any process of the run reads."""
        for part in self.folder.glob(".tmp-*"):
            shutil.rmtree(part)

    def folders(self) -> list[Path]:
        """The checkpoints before the final one, the newest last."""
        return sorted(self.folder.glob("checkpoint-*"))

    def clear(self) -> None:
        """Remove all: the run is finished and kept as cells."""
        for folder in self.folder.glob("*"):
            self._remove(folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove(self, folder: Path) -> None:
        """Remove a folder so that a kill leaves it whole or as a part that `tidy` knows."""
        gone = self.folder / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.rename(gone)
        shutil.rmtree(gone)

    def _write(self, name: str, files: Files) -> None:
        """Write a folder beside the others, flush it, and rename it into place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        for inner, data in files.items():
            path = temporary / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        target = self.folder / name
        if target.exists():  # damaged, or written by a run that was killed before it went on
            self._remove(target)
        temporary.rename(target)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def step_of(folder: Path) -> int:
    """The step in a folder's name."""
    return int(folder.name.rpartition("-")[2])

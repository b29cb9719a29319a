"""Resume state of a training run: safetensors and JSON, whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

KEEP = 2  # the newest, and one before it in case a disk loses the newest


@dataclass(frozen=True)
class Checkpoint:
    """State after an optimizer step."""

    step: int
    parameters: dict[str, Tensor]  # trained parameters by name
    optimizer: dict[str, Tensor]  # `parameter name|state name`
    scalars: dict[str, Any]  # JSON: history, gradient scaler


class Checkpoints:
    """The checkpoints of one training cell, in a folder of their own outside every out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint beside the others and rename it into place; then drop the old ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        save_file(checkpoint.parameters, temporary / "parameters.safetensors")
        save_file(checkpoint.optimizer, temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": checkpoint.step, **checkpoint.scalars}))
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        temporary.rename(self.folder / f"checkpoint-{checkpoint.step:08d}")
        for old in self._folders()[:-KEEP]:
            shutil.rmtree(old)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None. Parts that a killed writer left are removed."""
        for part in self.folder.glob(".tmp-*"):
            shutil.rmtree(part)
        folders = self._folders()
        if not folders:
            return None
        scalars = json.loads((folders[-1] / "state.json").read_text())
        return Checkpoint(
            scalars.pop("step"),
            load_file(folders[-1] / "parameters.safetensors"),
            load_file(folders[-1] / "optimizer.safetensors"),
            scalars,
        )

    def clear(self) -> None:
        """Remove all: the run is finished and kept as a cell."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """An optimizer's state as tensors named by parameter; `names` in the order of its parameters."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}|{part}": torch.as_tensor(value).detach().cpu().clone()
        for index, parts in state.items()
        for part, value in parts.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], names: list[str]) -> None:
    """Put the state that `optimizer_tensors` gave back into an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, part = name.rpartition("|")
        state.setdefault(names.index(parameter), {})[part] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

"""What a run remembers: its history, its best weights so far, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from framelora.training.checkpoint import Checkpoint, Checkpoints
from framelora.training.items import Items
from framelora.training.networks import adapter_scales, export, trained_parameters, with_values
from framelora.training.optimizer import Stepper
from framelora.training.validation import Diverged, Loss, validation_row
from framelora.training.world import World

if TYPE_CHECKING:
    from framelora.schema.training import Train


class UnfitStart(Exception):
    """A checkpoint is one of another training; says what differs."""


def check_start(start: Checkpoint, networks: nn.ModuleDict, optimizer: str) -> None:
    """See that a run can go on from a checkpoint.

    Args:
        start: the checkpoint.
        networks: what takes part in a step, prepared.
        optimizer: `train.optimizer`.

    Raises:
        UnfitStart: other parameters were trained there, or with another optimizer, or by adapters of another scale.
    """
    trained, found = trained_parameters(networks), start.tensors["parameters"]
    others = sorted(trained.keys() ^ found.keys())
    if others:
        raise UnfitStart(f"other things were trained there ({len(others)} names differ, the first is {others[0]})")
    for name, parameter in trained.items():
        if parameter.shape != found[name].shape:
            shapes = f"{list(found[name].shape)} there and {list(parameter.shape)} here"
            raise UnfitStart(f"an adapter of another rank, or another base, was trained there ({name} is {shapes})")
    for what, there, here in (
        ("optimizer", start.scalars["optimizer"].get("name"), optimizer),
        ("adapters", start.scalars.get("adapters"), adapter_scales(networks)),
    ):
        if there != here:
            raise UnfitStart(f"the {what} there: {there}, here: {here}")


class Record:
    """History, moving average, best weights and checkpoints of a run.

    The history has a row for each optimizer step: `step` (from 1), `loss`, `learning_rate`, `grad_norm`, and the
    validation losses where they were measured. A row of step 0 has those of the untrained model.
    """

    def __init__(
        self,
        networks: nn.ModuleDict,
        stepper: Stepper,
        params: Train,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        lineage: Mapping[str, Any],
    ) -> None:
        self.networks = networks
        self.trained = trained_parameters(networks)
        self.stepper = stepper
        self.params = params
        self.accelerator = accelerator
        self.world = World(accelerator.process_index, accelerator.num_processes)
        self.checkpoints = checkpoints
        self.lineage = lineage
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.average = {name: value.detach().clone() for name, value in self.trained.items() if params.ema_decay}

    def restore(self, start: Checkpoint) -> None:
        """Put back the state of a checkpoint that `check_start` has passed."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(start.tensors["parameters"][name])
            for name, value in self.average.items():
                value.copy_(start.tensors["average"].get(name, start.tensors["parameters"][name]))
        self.stepper.load_state(start.tensors["optimizer"], start.scalars["optimizer"])
        if self.accelerator.scaler is not None and start.scalars["scaler"]:
            self.accelerator.scaler.load_state_dict(start.scalars["scaler"])
        self.history, self.best = list(start.scalars["history"]), start.scalars["best"]

    def update_average(self) -> None:
        """Move the average towards the parameters, where there is one."""
        for name, value in self.average.items():
            value.lerp_(self.trained[name].detach(), 1 - self.params.ema_decay)

    def validate(self, step: int, items: Items, loss: Loss) -> dict[str, float]:
        """The validation losses of this state; the lowest of a trained one keeps its weights.

        Raises:
            Diverged: it is not finite.
        """
        with with_values(self.trained, self.average):
            row = validation_row(self.networks, items, loss, self.params, self.accelerator, self.world)
        measured = row.get("validation_loss", 0.0)
        if not math.isfinite(measured):
            raise Diverged(f"the validation loss is {measured} at step {step}")
        if row and step > 0 and (self.best is None or measured < self.best["validation_loss"]):
            self.best = {"step": step, "validation_loss": measured}
            if self.world.rank == 0:
                self.checkpoints.save_best(step, measured, self.export(step))
        return row

    def export(self, step: int) -> dict[str, bytes]:
        """The files of what was trained so far."""
        with with_values(self.trained, self.average):
            return export(self.networks, {**self.lineage, "trained_steps": step})

    def save(self, step: int, final: bool) -> None:
        """Write a checkpoint of this state; the first process does."""
        if self.world.rank != 0:
            return
        tensors, numbers = self.stepper.state()
        parts = {"parameters": on_cpu(self.trained), "average": on_cpu(self.average), "optimizer": tensors}
        scaler = None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
        scalars = {"history": self.history, "best": self.best, "optimizer": numbers, "scaler": scaler}
        scalars |= {"adapters": adapter_scales(self.networks)}
        self.checkpoints.save(Checkpoint(step, parts, scalars), self.export(step), final)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached, in the CPU's memory."""
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}

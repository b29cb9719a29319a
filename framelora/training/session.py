"""One process of a training run: builds the networks and hands them to the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from framelora.console import UserError, relative, warn
from framelora.training.checkpoint import Checkpoint, Checkpoints
from framelora.training.items import Items, run_length
from framelora.training.loop import train
from framelora.training.networks import build_networks
from framelora.training.preflight import starting_folder
from framelora.training.probe import NoGradient, layers_without_gradient
from framelora.training.record import UnfitStart, check_start
from framelora.training.trackers import open_trackers
from framelora.training.validation import Diverged

if TYPE_CHECKING:
    from framelora.params import Params


class Session:
    """What one process of a run needs besides its items.

    Args:
        params: all parameters.
        family: the family's `loss` part.
        base: folder of the base model.
        logs: folder for trackers.
    """

    def __init__(self, params: Params, family: Any, base: Path, logs: Path) -> None:
        self.params = params
        self.family = family
        self.base = base
        self.logs = logs

    def networks(self) -> nn.ModuleDict:
        """The base's networks, ready to be trained. Raises `UserError` when the parameters do not fit them."""
        adapter, train = self.params.adapter, self.params.train
        earlier = None if adapter.start_from is None else starting_folder(adapter.start_from)
        try:
            return build_networks(self.family, self.base, adapter, train, earlier)
        except ValueError as error:
            raise UserError(f"{error}") from None

    def loss(
        self, networks: nn.ModuleDict, batch: dict[str, Tensor], seeds: Sequence[int], levels: Sequence[float] | None
    ) -> Tensor:
        """The family's objective on a batch, `[B]`."""
        others = {name: network for name, network in networks.items() if name != "unet"}
        value: Tensor = self.family.loss(
            networks["unet"], batch, seeds, self.base, self.params.family, levels=levels, **others
        )
        return value

    def train(
        self, items: Mapping[str, Items], checkpoints: Checkpoints, start: Checkpoint | None, lineage: dict[str, Any]
    ) -> None:
        """Train to the end.

        Args:
            items: of `train` and `val`.
            checkpoints: where checkpoints go.
            start: what the run goes on from.
            lineage: what saved weights tell about their origin.

        Raises:
            UserError: the run diverged, can't learn, or can't go on from its start.
        """
        params = self.params.train
        AcceleratorState._reset_state(reset_partial_state=False)  # a second run of one process may differ in precision
        accelerator = Accelerator(
            mixed_precision=params.mixed_precision,
            cpu=not torch.cuda.is_available(),
            log_with=params.report_to or None,
            project_dir=self.logs,
        )
        networks = self.networks().to(accelerator.device)
        steps = run_length(items["train"].shapes, params).steps
        if start is not None:
            try:
                check_start(start, networks, params.optimizer)
            except UnfitStart as reason:
                raise UserError(f"train.resume_from_checkpoint: {reason}: train as there, or name another") from None
        if start is not None and start.step >= steps:
            raise UserError(f"train.resume_from_checkpoint is at step {start.step} of {steps}: raise the run's length")
        if accelerator.is_main_process and params.lr_warmup_steps > steps and params.lr_scheduler != "constant":
            warn(f"train: warm-up takes {params.lr_warmup_steps} of {steps} steps: the learning rate is never reached")
        try:
            if start is None:
                self.probe(networks, items["train"], accelerator)
            if accelerator.is_main_process:
                shown = {"adapter": self.params.adapter.model_dump(), "train": params.model_dump()}
                open_trackers(accelerator, params.report_to, self.logs, shown)
            train(networks, items["train"], items["val"], self.loss, params, accelerator, checkpoints, start, lineage)
        except Diverged as error:
            last = max(checkpoints.folders(), default=None)
            good = f"the last good checkpoint is {relative(last)}" if last else "there is no checkpoint yet"
            raise UserError(f"{error}; {good}: lower train.learning_rate, or look at these items") from None
        finally:
            accelerator.end_training()

    def probe(self, networks: nn.ModuleDict, items: Items, accelerator: Accelerator) -> None:
        """Stop when a group of what is to be trained gets no gradient; warn of single layers."""
        try:
            idle = layers_without_gradient(networks, items, self.loss, accelerator, self.params.train.seed)
        except NoGradient as group:
            raise UserError(
                f"{group} would get no gradient, so nothing of it would be learned: take it out of "
                "adapter.target_modules, or set train.unet or train.controlnet to none"
            ) from None
        if idle and accelerator.is_main_process:
            warn(f"train: {len(idle)} layers get no gradient and stay as they are: {', '.join(idle)}")

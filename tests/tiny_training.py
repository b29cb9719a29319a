"""A training run of a few dozen parameters, with the real loop and checkpoints, that can kill itself anywhere.

As a script it is one process of a run: `python tests/tiny_training.py STATE key=value ...`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from framelora.params import load_params
from framelora.schema.training import Adapter, Train
from framelora.training.checkpoint import Checkpoints
from framelora.training.items import Items
from framelora.training.loop import train
from framelora.training.networks import prepare
from framelora.training.trackers import open_trackers

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = load_params(REPOSITORY / "params.yaml")
LINEAGE: dict[str, Any] = {"cell": "tiny"}


class Net(nn.Module):
    """Two Linear layers and one that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(4, 8)
        self.to_v = nn.Linear(8, 4)
        self.idle = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 4]` to `[B, 4]`."""
        hidden = torch.tanh(self.to_q(x))
        self.idle(hidden)
        value: Tensor = self.to_v(hidden)
        return value


def section(**values: Any) -> Train:
    """A `train` section: 5 steps of 2 batches of 2, a checkpoint and a validation after every second step."""
    short = {
        "max_train_steps": 5, "train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.05,
        "lr_warmup_steps": 2, "checkpointing_steps": 2, "validation_steps": 2, "validation_draws": 2,
    }  # fmt: skip
    return Train.model_validate(SHIPPED.train.model_dump() | short | values)


def adapter_section(**values: Any) -> Adapter:
    """An `adapter` section: rank 2, dropout 0.2."""
    return Adapter.model_validate(
        SHIPPED.adapter.model_dump()
        | {"rank": 2, "alpha": 2.0, "dropout": 0.2, "target_modules": ["to_q", "to_v"]}
        | values
    )


def tiny_items(count: int, name: str) -> Items:
    """Items of random numbers."""

    def read(number: int, seed: int) -> dict[str, Tensor]:
        event()
        return {"x": torch.randn(4, generator=torch.Generator().manual_seed(number))}

    return Items([f"{name}{number}" for number in range(count)], [(1,)] * count, read)


def tiny_loss(
    networks: nn.ModuleDict, batch: dict[str, Tensor], seeds: Sequence[int], levels: Sequence[float] | None
) -> Tensor:
    """Reconstruct noisy items; the noise level is drawn, or set by `levels`."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(4, generator=generator) for generator in generators])
    drawn = [float(torch.rand((), generator=generator)) for generator in generators]
    sigma = torch.tensor(drawn if levels is None else list(levels))[:, None]
    return (networks["unet"](batch["x"] + sigma * noise) - batch["x"]).square().mean(dim=1)


def tiny_networks(train_section: Train, adapter: Adapter | None = None) -> nn.ModuleDict:
    """The net, drawn from a fixed seed and made ready to be trained."""
    torch.manual_seed(0)
    chosen = adapter or adapter_section()
    return nn.ModuleDict({"unet": prepare(Net(), train_section.unet, chosen, [], 1, train_section.base_int8)})


events = {"left": -1}


def event() -> None:
    """Something happened: a read, a flush to disk, or a rename. The process dies by SIGKILL at the chosen one."""
    if events["left"] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    events["left"] -= 1


def run(state: str, kill_at: int = -1, items: int = 7, adapter: dict[str, Any] | None = None, **values: Any) -> None:
    """Train to the end, going on from the last checkpoint; or die at event `kill_at`."""
    torch.set_num_threads(1)
    events["left"] = kill_at if os.environ.get("RANK", "0") == "0" else -1
    fsync, rename = os.fsync, Path.rename

    def counted_fsync(descriptor: int) -> None:
        event()
        fsync(descriptor)

    def counted_rename(path: Path, target: Path) -> Path:
        event()
        return rename(path, target)

    os.fsync, Path.rename = counted_fsync, counted_rename  # type: ignore[assignment, method-assign]
    try:
        params = section(**values)
        AcceleratorState._reset_state(reset_partial_state=True)
        logs = Path(state).with_name("logs")
        accelerator = Accelerator(
            cpu=True, mixed_precision=params.mixed_precision, log_with=params.report_to or None, project_dir=logs
        )
        open_trackers(accelerator, params.report_to, logs, {"train": params.model_dump()})
        checkpoints = Checkpoints(Path(state), params.checkpoints_total_limit)
        if accelerator.is_main_process:
            checkpoints.tidy()
        accelerator.wait_for_everyone()
        start, _ = checkpoints.latest()
        networks = tiny_networks(params, adapter_section(**(adapter or {})))
        validation = tiny_items(3, "val")
        train(
            networks, tiny_items(items, "item"), validation, tiny_loss, params, accelerator, checkpoints, start, LINEAGE
        )
        accelerator.end_training()
    finally:
        os.fsync, Path.rename = fsync, rename  # type: ignore[method-assign]
    events["left"] = -1


if __name__ == "__main__":
    run(sys.argv[1], **{key: json.loads(value) for key, _, value in (text.partition("=") for text in sys.argv[2:])})

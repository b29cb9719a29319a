"""The training loop that the recipes of this folder share: schedule, moving average, log, snapshots."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import torch
import typer
from torch import Tensor, nn

# Options that every recipe has, in the words of `--help`.
Minutes = Annotated[float, typer.Option(help="end after this time instead, the schedule following the clock")]
SaveEvery = Annotated[int, typer.Option(help="steps between snapshots of the averaged weights")]


def one_thread() -> None:
    """The recipes' draws and sums are repeatable on one thread only."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def learning_rate(step: int, steps: int, peak: float, warm: int = 50) -> float:
    """Linear warm-up, then a half cosine to 2 % of the peak."""
    if step < warm:
        return peak * (step + 1) / warm
    share = min(1.0, (step - warm) / max(1, steps - warm))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True)
class Schedule:
    """How long a run is and how fast it learns. With `minutes` above 0 its progress is time, not steps."""

    steps: int
    peak: float
    minutes: float = 0.0
    save_every: int = 250
    decay: float = 0.995  # of the moving average
    clip: float = math.inf  # of the gradient's norm


class KernelMuon(torch.optim.Muon):
    """Muon (orthogonalised momentum) that takes a convolution's kernel `[out, in, ...]` as `[out, in * taps]`."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        self.kernels: list[tuple[nn.Parameter, nn.Parameter]] = []  # each with its matrix, which shares its memory
        flat = []
        for group in groups:
            matrices = [nn.Parameter(parameter.detach().flatten(1)) for parameter in group["params"]]
            self.kernels += zip(group["params"], matrices, strict=True)
            flat.append(group | {"params": matrices})
        super().__init__(flat, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step along the gradients of the kernels."""
        for kernel, matrix in self.kernels:
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        return super().step(closure)


def build_optimizers(groups: list[dict[str, Any]], peak: float) -> list[torch.optim.Optimizer]:
    """Adam for most groups; Muon for those marked `matrices` (Linear layers' weights, or kernels)."""
    adam = [group for group in groups if not group.get("matrices")]
    muon = [group for group in groups if group.get("matrices")]
    optimizers: list[torch.optim.Optimizer] = []
    if adam:
        optimizers.append(torch.optim.Adam(adam, lr=peak, betas=(0.9, 0.99)))
    if muon:
        optimizers.append(KernelMuon(muon, lr=peak))
    return optimizers


def train(
    model: nn.Module,
    groups: list[dict[str, Any]],
    loss: Callable[[int, float], Tensor],
    save: Callable[[nn.Module], None],
    schedule: Schedule,
) -> int:
    """Minimise `loss(step, progress)`, progress in 0..1, and save the moving average of the weights.

    Args:
        model: what is trained; its parameters without `requires_grad` stay.
        groups: parameters, each group with the `share` of the learning rate that it gets; see `build_optimizers`.
        loss: a scalar, a function of the step and of the recipe's own generators.
        save: writes the average; called every `save_every` steps and at the end.
        schedule: its length and rates.

    Returns:
        The number of steps taken.

    Raises:
        RuntimeError: the weights are no longer finite; the last good snapshot stays.
    """
    average = copy.deepcopy(model)
    optimizers = build_optimizers(groups, schedule.peak)
    started, recent, step, progress = time.monotonic(), [], 0, 0.0
    while progress < 1 and schedule.steps > 0:
        rate_step = int(progress * schedule.steps) if schedule.minutes else step
        rate = learning_rate(max(step, rate_step) if step < 50 else rate_step, schedule.steps, schedule.peak)
        value = loss(step, progress)
        model.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            optimizer.step()
        with torch.no_grad():
            decay = min(schedule.decay, (1 + step) / (10 + step))
            for mean, current in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(current, 1 - decay)
        recent.append(value.item())
        step += 1
        elapsed = time.monotonic() - started
        progress = elapsed / (60 * schedule.minutes) if schedule.minutes else step / schedule.steps
        if step % 50 == 0:
            mean_loss = sum(recent) / len(recent)
            print(f"step {step} loss {mean_loss:.4f} {elapsed / step:.3f} s/step", file=sys.stderr, flush=True)
            recent.clear()
        if step % schedule.save_every == 0 or progress >= 1:
            if not all(bool(torch.isfinite(mean).all()) for mean in average.parameters()):
                raise RuntimeError(f"weights are not finite at step {step}; the last good snapshot stays")
            save(average)
    return step

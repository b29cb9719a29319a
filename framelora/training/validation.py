"""The validation loss: fixed items, fixed noise, in equal shares of the training noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from framelora.digest import draw_seed
from framelora.training.items import Items
from framelora.training.world import World

if TYPE_CHECKING:
    from framelora.schema.training import Train


class Diverged(Exception):
    """A loss or gradient is NaN or infinite; the text says at which step and on which items."""


# `(networks, batch, seeds, levels) -> [B]`: all draws of an item are functions of its seed. A level between 0 and 1
# sets its noise: that quantile of the training noise levels, and nothing of its conditions is dropped.
Loss = Callable[[nn.ModuleDict, dict[str, Tensor], Sequence[int], Sequence[float] | None], Tensor]


@torch.no_grad()
def validation_row(
    networks: nn.ModuleDict, items: Items, loss: Loss, params: Train, accelerator: Accelerator, world: World
) -> dict[str, float]:
    """Mean loss over the validation items, with the same draws each time; nothing where there are no items.

    Returns:
        `validation_loss`, the mean; and `validation_loss_1` ... for each share of the noise levels, the least noise
        first. Draws lie at random, but fixed, places within their share.
    """
    if not items.ids:
        return {}
    was_training = networks.training
    networks.eval()
    draws = [(share, draw) for share in range(params.validation_levels) for draw in range(params.validation_draws)]
    losses = torch.zeros(len(items.ids), len(draws), dtype=torch.float64)
    for number in range(world.rank, len(items.ids), world.processes):
        seeds = [draw_seed(params.seed, "validation", items.ids[number], *draw) for draw in draws]
        levels = [
            (share + seed % 2**32 / 2**32) / params.validation_levels
            for (share, _), seed in zip(draws, seeds, strict=True)
        ]
        batch = items.batch([number] * len(seeds), seeds, accelerator.device)
        with accelerator.autocast():
            losses[number] = loss(networks, batch, seeds, levels).double().cpu()
    networks.train(was_training)
    losses = world.sum(losses.to(accelerator.device)).cpu()
    shares = losses.view(len(items.ids), params.validation_levels, params.validation_draws).unbind(1)
    row = {"validation_loss": mean(losses)}
    return row | {f"validation_loss_{number}": mean(share) for number, share in enumerate(shares, 1)}


def mean(values: Tensor) -> float:
    """The mean, by an exact sum."""
    return math.fsum(values.flatten().tolist()) / values.numel()

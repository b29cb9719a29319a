"""What is trained on: items, their batches, and how long a run is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from framelora.dataset.sampler import BatchSampler, Shape

if TYPE_CHECKING:
    from framelora.schema.training import Train

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Items:
    """Training or validation items, read when they are needed."""

    ids: Sequence[str]
    shapes: Sequence[Shape]  # the kind, and the sizes that a batch shares
    read: Callable[[int, int], Batch]  # (number, seed of its draws) -> one item, without batch dimension

    def batch(self, numbers: Sequence[int], seeds: Sequence[int], device: torch.device) -> Batch:
        """Items stacked to `[B, ...]`, each with the seed of its draws."""
        items = [self.read(number, seed) for number, seed in zip(numbers, seeds, strict=True)]
        return {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}


@dataclass(frozen=True)
class Length:
    """The length of a run: optimizer steps, and the batches that each of them takes."""

    steps: int
    batches: int  # of the whole run, over all processes
    accumulation: int

    def of_step(self, step: int) -> range:
        """Numbers of the batches of optimizer step `step` (from 1). The last step takes what is left."""
        begin = (step - 1) * self.accumulation
        return range(begin, min(begin + self.accumulation, self.batches))


def run_sampler(shapes: Sequence[Shape], params: Train) -> BatchSampler:
    """The order of the batches; a batch is shared by all processes."""
    return BatchSampler(shapes, params.train_batch_size * params.num_processes, params.seed, params.image_share)


def run_length(shapes: Sequence[Shape], params: Train) -> Length:
    """Length in steps, or in epochs: then the last step may have fewer batches, and there is always one step."""
    accumulation = params.gradient_accumulation_steps
    if params.num_train_epochs is None:
        assert params.max_train_steps is not None  # the schema demands one of the two
        return Length(params.max_train_steps, params.max_train_steps * accumulation, accumulation)
    batches = params.num_train_epochs * run_sampler(shapes, params).batches_per_epoch
    return Length(-(-batches // accumulation), batches, accumulation)

"""Batch order as a pure function of seed and step: a resumed run sees the batches it would have seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from framelora.digest import draw_seed


class BatchSampler:
    """Deals items into batches of one shape; every item comes once an epoch, in a new order each epoch.

    A last batch that is not full is filled up from the start of its own group's order, so nothing is dropped.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], batch_size: int, seed: int) -> None:
        """
        Args:
            shapes: shape of each item; items of different shapes never share a batch.
            batch_size: items in a batch, over all processes.
            seed: seed of the order.
        """
        self.groups = [[i for i, shape in enumerate(shapes) if shape == wanted] for wanted in sorted(set(shapes))]
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = sum(-(-len(group) // batch_size) for group in self.groups)

    def batch(self, number: int) -> list[int]:
        """Items of batch `number`, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.batches_per_epoch)
        random = np.random.default_rng(draw_seed(self.seed, "order", epoch))
        batches = []
        for group in self.groups:
            order = random.permutation(group)
            full = np.resize(order, -(-len(order) // self.batch_size) * self.batch_size)  # repeats from the start
            batches.extend(full.reshape(-1, self.batch_size).tolist())
        chosen: list[int] = batches[random.permutation(len(batches))[place]]
        return chosen

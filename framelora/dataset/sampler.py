"""Batch order as a pure function of seed and step: a resumed run sees the batches it would have seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from framelora.digest import draw_seed

IMAGE = "image"
Shape = tuple[int | str, ...]  # kind, frames, height, width; in tests less


class BatchSampler:
    """Deals items into batches of one shape; every item comes once an epoch, in a new order each epoch.

    A last batch that is not full is filled up from the start of its own group's order, so nothing is dropped.
    """

    def __init__(self, shapes: Sequence[Shape], batch_size: int, seed: int, image_share: float | None = None) -> None:
        """
        Args:
            shapes: shape of each item, its kind first; items of different shapes never share a batch.
            batch_size: items in a batch, over all processes.
            seed: seed of the order.
            image_share: share of the batches that are of kind `image`: those and all others are then dealt apart, each
                in epochs of their own, and an epoch of both lasts until every item has come. Without effect where all
                items are of one kind.
        """
        self.groups = [[i for i, shape in enumerate(shapes) if shape == wanted] for wanted in sorted(set(shapes))]
        self.batch_size = batch_size
        self.seed = seed
        images = [number for number, group in enumerate(self.groups) if shapes[group[0]][0] == IMAGE]
        others = [number for number in range(len(self.groups)) if number not in images]
        self.share: Fraction | None = None
        self.parts = [list(range(len(self.groups)))]
        if image_share is not None and images and others:
            self.share = Fraction(image_share).limit_denominator(10_000)
            self.parts = [others, images]
        lengths = [sum(-(-len(self.groups[number]) // batch_size) for number in part) for part in self.parts]
        self.lengths = lengths
        self.batches_per_epoch = lengths[0]
        if self.share is not None:
            self.batches_per_epoch = max(math.ceil(lengths[0] / (1 - self.share)), math.ceil(lengths[1] / self.share))

    def batch(self, number: int) -> list[int]:
        """Items of batch `number`, counted from 0 over all epochs."""
        part = 0
        if self.share is not None:  # images come evenly spread: batch n is one where n times the share passes a number
            images = math.floor(number * self.share)
            part = int(math.floor((number + 1) * self.share) > images)
            number = images if part else number - images
        epoch, place = divmod(number, self.lengths[part])
        random = np.random.default_rng(draw_seed(self.seed, "order", epoch, *(["images"] if part else [])))
        batches = []
        for group in self.parts[part]:
            order = random.permutation(self.groups[group])
            full = np.resize(order, -(-len(order) // self.batch_size) * self.batch_size)  # repeats from the start
            batches.extend(full.reshape(-1, self.batch_size).tolist())
        chosen: list[int] = batches[random.permutation(len(batches))[place]]
        return chosen

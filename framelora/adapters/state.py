"""An adapter without its file format: pairs of low-rank matrices by layer, and what it knows of its origin."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, int]]  # (out, in) of each Linear layer, by its name in diffusers' class


class BadAdapter(ValueError):
    """A file that is no adapter, or one that does not fit; one line that says what and where."""


@dataclass(frozen=True)
class LoraLayer:
    """What an adapter adds to one Linear layer's weight W: `alpha / rank * up @ down`.

    Attributes:
        down: `[rank, in]`.
        up: `[out, rank]`.
        alpha: numerator of the scale.
        magnitude: DoRA's magnitude `[out]`, or None: then W' = magnitude * (W + delta) / |W + delta|, by rows.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rank of the pair."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """`[out, in]`, fp32."""
        return self.scale * (self.up.float() @ self.down.float())

    def norm(self) -> float:
        """Frobenius norm of the delta, without forming it: tr(up^T up down down^T)."""
        up, down = self.up.double(), self.down.double()
        return abs(self.scale) * math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


@dataclass(frozen=True)
class LoraState:
    """An adapter.

    Attributes:
        layers: by the layer's name in diffusers' class, sorted.
        lineage: what the file says of its origin (`framelora show`).
    """

    layers: dict[str, LoraLayer]
    lineage: dict[str, Any] = field(default_factory=dict)

    @property
    def dora(self) -> bool:
        """Whether any layer has a magnitude."""
        return any(layer.magnitude is not None for layer in self.layers.values())


def without_effect(state: LoraState, names: Collection[str]) -> LoraState:
    """An adapter that changes nothing on some layers: `up` is zero there.

    A layer that reaches no output is not trained, but it may hold what it began with (PiSSA, an earlier adapter).
    """
    layers = {
        name: replace(layer, up=torch.zeros_like(layer.up)) if name in names else layer
        for name, layer in state.layers.items()
    }
    return LoraState(layers, state.lineage)


def linear_shapes(network: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of every Linear layer of a network, which may be on the meta device."""
    layers = network.named_modules()
    return {name: (part.out_features, part.in_features) for name, part in layers if isinstance(part, nn.Linear)}


def listed(names: list[str], most: int = 5) -> str:
    """Names for a message: the first few and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_fits(state: LoraState, shapes: Shapes, what: str) -> None:
    """See that an adapter can be used on a model.

    Args:
        state: the adapter.
        shapes: the model's Linear layers.
        what: the adapter, for the message.

    Raises:
        BadAdapter: it adapts layers that the model has not, or that have another shape there; both are listed.
    """
    unknown = [name for name in state.layers if name not in shapes]
    if unknown:
        raise BadAdapter(f"{what} does not fit this base: no such layers: {listed(unknown)}")
    wrong = [
        f"{name} is {found[0]}x{found[1]}, the base's {shapes[name][0]}x{shapes[name][1]}"
        for name, layer in state.layers.items()
        if (found := (layer.up.shape[0], layer.down.shape[1])) != tuple(shapes[name])
    ]
    if wrong:
        raise BadAdapter(f"{what} does not fit this base: {listed(wrong, 3)}")


def check_pairs(parts: Mapping[str, Mapping[str, Tensor]], required: tuple[str, ...], what: str) -> None:
    """See that each layer of a file has all its tensors, of matching ranks. Raises `BadAdapter`."""
    missing = [f"{layer} {name}" for layer, found in parts.items() for name in required if name not in found]
    if missing:
        raise BadAdapter(f"{what}: tensors are missing: {listed(missing)}")
    down, up = required[:2]
    odd = [layer for layer, found in parts.items() if found[down].shape[0] != found[up].shape[1]]
    if odd:
        raise BadAdapter(f"{what}: the two matrices of a layer differ in rank: {listed(odd)}")
    if not parts:
        raise BadAdapter(f"{what}: holds no LoRA tensor")
    broken = [layer for layer, found in parts.items() if not all(torch.isfinite(t).all() for t in found.values())]
    if broken:
        raise BadAdapter(f"{what}: holds NaN or infinite values: {listed(broken)}")

"""Several adapters as one: equal to the weighted sum of their changes, or recompressed to a rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from framelora.adapters.state import BadAdapter, LoraLayer, LoraState


def combine(adapters: Sequence[tuple[LoraState, float]]) -> LoraState:
    """One adapter that at weight 1 changes what the adapters change together, each at its weight.

    Ranks are put side by side, so the sum is exact. (Averaging the matrices themselves, peft's `linear`, is another
    thing: its cross terms are as large as the effect.)

    Raises:
        BadAdapter: a DoRA adapter, whose change is no low-rank sum; or two adapters differ in a layer's shape.
    """
    layers: dict[str, LoraLayer] = {}
    if any(state.dora for state, _ in adapters):
        raise BadAdapter(
            "DoRA adapters do not combine: what they change is no low-rank sum; give one alone to "
            "`framelora generate`, or train it here, for render.lora_weights"
        )
    for name in sorted({name for state, _ in adapters for name in state.layers}):
        found = [(state.layers[name], weight) for state, weight in adapters if name in state.layers]
        if len({(layer.up.shape[0], layer.down.shape[1]) for layer, _ in found}) > 1:
            raise BadAdapter(f"the adapters are for other models: {name} differs in shape")
        down = torch.cat([layer.down.float() for layer, _ in found])
        up = torch.cat([weight * layer.scale * layer.up.float() for layer, weight in found], dim=1)
        layers[name] = LoraLayer(down, up, float(len(down)))
    parts: list[dict[str, Any]] = [{"weight": weight, "lineage": state.lineage} for state, weight in adapters]
    return LoraState(layers, {"combined": parts})


def compress(state: LoraState, rank: int) -> tuple[LoraState, float]:
    """The nearest adapter (least squares, layer by layer) of at most a rank.

    Returns:
        The adapter, and the norm of what is lost as a share of the norm of the whole change.
    """
    layers = {}
    lost, whole = 0.0, 0.0
    for name, layer in state.layers.items():
        up, values, down = factors(layer)
        kept = min(rank, len(values))
        root = values[:kept].sqrt()
        layers[name] = LoraLayer((root[:, None] * down[:kept]).float(), (up[:, :kept] * root).float(), float(kept))
        lost += float(values[kept:].square().sum())
        whole += float(values.square().sum())
    return LoraState(layers, state.lineage | {"compressed_to_rank": rank}), math.sqrt(lost / whole) if whole else 0.0


def factors(layer: LoraLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values of a change, from its two thin matrices (fp64): `[out, r]`, `[r]`, `[r, in]`."""
    left, inner_left = torch.linalg.qr(layer.up.double())
    right, inner_right = torch.linalg.qr(layer.down.double().T)
    up, values, down = torch.linalg.svd(layer.scale * inner_left @ inner_right.T)
    return left @ up[:, : len(values)], values, down[: len(values)] @ right.T

"""Where a render's networks lie: on the device for good, or on the CPU until they compute."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from framelora.adapters.live import hold_in_float8

if TYPE_CHECKING:
    from framelora.schema.easyanimate import MemoryMode


class Placement:
    """Where the networks of a render are while others compute.

    Args:
        mode: `none` keeps all on the device; `model_cpu_offload` only the one at work; `..._and_qfloat8` the same, with
            denoisers in float8; `sequential_cpu_offload` only the layer at work.
        device: where they compute.
        dtype: what denoisers compute in.
    """

    def __init__(self, mode: MemoryMode, device: torch.device, dtype: torch.dtype) -> None:
        self.mode = mode
        self.device = device
        self.dtype = dtype
        self.ready: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    @contextmanager
    def at_work(self, network: nn.Module, *, denoiser: bool = False) -> Iterator[None]:
        """Have a network on the device in here. Adapters have to be on it when this is first called."""
        layer_by_layer = denoiser and self.mode == "sequential_cpu_offload"
        if network not in self.ready:
            if denoiser and self.mode == "model_cpu_offload_and_qfloat8":
                hold_in_float8(network, self.dtype)
            if layer_by_layer:
                from accelerate import cpu_offload

                cpu_offload(network, execution_device=self.device)
            self.ready.add(network)
        if not layer_by_layer:
            network.to(self.device)
        yield
        if not layer_by_layer and self.mode != "none":
            network.to("cpu")

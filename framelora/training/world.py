"""What the processes of a run share: each has its places in a batch; gradients are summed as one flat tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """A process among those of a run."""

    rank: int = 0
    processes: int = 1

    def places(self, total: int) -> range:
        """This process's places in a batch of `total` items over all processes."""
        share = total // self.processes
        return range(self.rank * share, (self.rank + 1) * share)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; each gets the same bytes."""
        if self.processes > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes.

        They travel as one flat fp32 tensor in the parameters' order. (The bucketed reducer of DistributedDataParallel
        rebuilds its buckets after the first step, and so adds in another order after a resume.)
        """
        if self.processes == 1:
            return
        parameters = list(parameters)
        flat = torch.cat([gradient(parameter).flatten().float() for parameter in parameters])
        parts = (self.sum(flat) / self.processes).split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)


def gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient, zeros where it got none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

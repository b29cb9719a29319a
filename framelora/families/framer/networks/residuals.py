"""Adding a ControlNet's residuals to a UNet of diffusers whose forward pass does not take them.

The residuals join the skip connections and the output of the middle block, and nothing else, so hooks on the blocks
that read these do it, and the forward pass stays diffusers' own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn


@contextlib.contextmanager
def added_residuals(unet: UNetSpatioTemporalConditionModel, down: Sequence[Tensor], mid: Tensor) -> Iterator[None]:
    """Let a UNet's forward passes inside this context add residuals.

    Args:
        unet: the UNet.
        down: one residual for each skip connection, in the order in which the down blocks make them,
            each `[B*F, C, h, w]`.
        mid: residual of the middle block's output `[B*F, C, h, w]`.

    Raises:
        ValueError: there are more or fewer residuals than skip connections.
    """
    wanted = sum(len(block.resnets) for block in unet.up_blocks)
    if len(down) != wanted:
        raise ValueError(f"the UNet has {wanted} skip connections, and got {len(down)} residuals")
    handles = [unet.mid_block.register_forward_hook(lambda _module, _args, output: output + mid)]
    left = list(down)
    for block in unet.up_blocks:  # each takes the last ones that are left, as the UNet deals its skip connections
        mine, left = left[-len(block.resnets) :], left[: -len(block.resnets)]
        handles.append(block.register_forward_pre_hook(_add_to_skips(mine), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_to_skips(residuals: Sequence[Tensor]) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        skips = kwargs["res_hidden_states_tuple"]
        return args, kwargs | {
            "res_hidden_states_tuple": tuple(skip + extra for skip, extra in zip(skips, residuals, strict=True))
        }

    return hook

"""How much memory a training step takes, without a weight and without the device it is for.

The step is run on fake tensors (torch's FakeTensorMode): networks on the meta device that pass for ones in memory. The
real objective goes forward and backward through them, nothing is computed, and every storage that would be there is
counted from its birth to its end.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framelora.adapters.live import float8_layers
from framelora.training.networks import DTYPES, build_networks, trained_parameters

if TYPE_CHECKING:
    from framelora.schema.training import Adapter, Train

# Optimizer states, bytes for each trained fp32 value: AdamW keeps two fp32 values, Prodigy four; 8-bit AdamW two bytes
# and an fp32 scale for each 256 of them (of tensors with fewer than 4096 values it keeps fp32: left out, they are few).
STATE_BYTES = {"adamw": 8.0, "prodigy": 16.0, "adamw_8bit": 2 * (1 + 4 / 256)}
FP32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step takes.

    Attributes:
        parameters: how many are trained.
        frozen: the weights that are not trained, as they are held.
        trained: those that are, fp32.
        gradients: of all that is trained, fp32.
        optimizer: its states, and the moving average where there is one.
        activations: the most that is there besides of what is kept for the backward pass and of what is computed.
        peak: the most at any moment. Gradients come while activations go, so this can be less than the sum.
        host: what `offload_optimizer` keeps in the CPU's memory, where training runs on a GPU.
    """

    parameters: int
    frozen: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    host: int = 0


class LiveStorage(TorchDispatchMode):
    """Counts the bytes of the tensors that operations inside of it make, until they are gone.

    Attributes:
        live: bytes now.
        gradients: those of them that are gradients of parameters that are trained.
        peak: most bytes so far.
        others: bytes besides gradients at their highest.
    """

    def __init__(self, networks: nn.Module) -> None:
        super().__init__()
        self.known: dict[int, int] = {}
        self.live = self.gradients = self.peak = self.others = 0
        for tensor in (*networks.parameters(), *networks.buffers()):
            self.known[id(tensor.untyped_storage())] = 0  # counted as weights
        for parameter in networks.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._note_gradient)
        self.with_gradient: set[int] = set()

    def _note_gradient(self, parameter: Tensor) -> None:
        if id(parameter) not in self.with_gradient:
            assert parameter.grad is not None
            self.with_gradient.add(id(parameter))
            self.gradients += parameter.grad.nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.known:
                self.known[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self._forget, id(storage))
                self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self.others = max(self.others, self.live - self.gradients)
        return made

    def _forget(self, key: int) -> None:
        self.live -= self.known.pop(key)


def normalise_in_fp32(networks: nn.Module) -> None:
    """Let normalisations take and keep fp32, as autocast has it on a GPU; on the CPU it leaves them as they are."""
    for module in networks.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            cast(module, torch.float32)
            module.register_forward_pre_hook(lambda _, args: tuple(arg.float() for arg in args))


def upcast_from_float8(networks: nn.Module, dtype: torch.dtype) -> None:
    """Hold Linear layers as `adapters.live.hold_in_float8` does; an upcast copy lives until its backward pass."""
    for layer in float8_layers(networks):
        cast(layer, torch.float8_e4m3fn)

        def forward(inputs: Tensor, layer: nn.Linear = layer) -> Tensor:
            bias = None if layer.bias is None else layer.bias.to(dtype)
            return nn.functional.linear(inputs, layer.weight.to(dtype), bias)

        layer.forward = forward  # type: ignore[assignment,method-assign]


class Weightless:
    """A family's `loss` part whose networks have no weights (`training.networks.build_networks` takes either)."""

    def __init__(self, loss: Any, keys: Any, footprint: Any) -> None:
        self.lora_targets = loss.lora_targets
        self.load_denoiser = lambda base, dtype: cast(keys.empty_denoiser(base), dtype)
        if hasattr(loss, "load_controlnet"):
            self.load_controlnet = lambda unet, base, dtype, _seed: cast(footprint.empty_controlnet(unet, base), dtype)


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A network's weights in a precision; fp32 parts of a network as diffusers would keep them do not count here."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def estimate(
    parts: Mapping[str, Any],
    base: Path,
    family: Any,
    adapter: Adapter,
    train: Train,
    window: Mapping[str, int],
    *,
    gpu: bool,
) -> Memory:
    """The memory of a training step.

    Args:
        parts: the family's `loss`, `keys` and `footprint` modules.
        base: folder of the base model; only its configurations are read.
        family: the family's parameters.
        adapter: the `adapter` section.
        train: the `train` section.
        window: `num_frames`, `width` and `height` (pixels) of the training windows.
        gpu: whether training runs on a GPU: its autocast normalises in fp32, and its optimizer steps on all parameters
            at once.

    Raises:
        ValueError: the adapter does not fit the network, or the family has no ControlNet.
    """
    # PiSSA needs values, 8-bit Linear layers a library, and float8 ones swap their weights, which fake tensors can't:
    # none of them changes the shapes. Their bytes are counted below.
    shaped = adapter.model_copy(update={"init": "gaussian"})
    held = DTYPES["no"] if adapter.init == "pissa" else None
    with torch.device("meta"):
        networks = build_networks(
            Weightless(parts["loss"], parts["keys"], parts["footprint"]),
            base,
            shaped,
            train.model_copy(update={"base_int8": False, "base_fp8": False}),
            None,
        )
        if held is not None:
            cast(networks, held)
        if train.base_fp8:
            upcast_from_float8(networks, DTYPES[train.mixed_precision])
    frozen = sum(held_bytes(module, train.base_int8) for module in networks.modules())
    if gpu and train.mixed_precision != "no":
        normalise_in_fp32(networks)
    with FakeTensorMode(allow_non_fake_inputs=True):
        networks.to_empty(device="cpu")
    networks.train()
    trained = trained_parameters(networks)
    count = sum(parameter.numel() for parameter in trained.values())
    shown = {"controlnet": True} if train.controlnet != "none" else {}
    item = parts["footprint"].example_batch(base, family, **window, **shown)
    batch = {name: torch.stack([tensor] * train.train_batch_size) for name, tensor in item.items()}
    live = LiveStorage(networks)
    others = {name: network for name, network in networks.items() if name != "unet"}
    with live:
        for turn in range(min(2, train.gradient_accumulation_steps)):  # in the second one all gradients are there
            seeds: Sequence[int] = range(turn, turn + train.train_batch_size)
            dtype = DTYPES[train.mixed_precision]
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                value = parts["loss"].loss(networks["unet"], batch, seeds, base, family, **others)
            value.mean().backward()
            del value

    states = round(count * STATE_BYTES[train.optimizer])
    average = count * FP32 if train.ema_decay else 0
    offloaded = train.offload_optimizer
    host = states + 2 * count * FP32 if offloaded and gpu else 0  # and copies of values and gradients
    on_device = average + (0 if host else states) + (2 * count * FP32 if offloaded and not gpu else 0)
    inputs = sum(tensor.nbytes for tensor in batch.values())
    stepping = count * FP32 * max(int(gpu and not offloaded), 2 * (train.num_processes > 1))
    peak = max(live.peak + inputs, live.gradients + stepping)
    weights = frozen + count * FP32
    return Memory(
        parameters=count,
        frozen=frozen,
        trained=count * FP32,
        gradients=live.gradients,
        optimizer=on_device,
        activations=live.others + inputs,
        peak=weights + on_device + peak,
        host=host,
    )


def held_bytes(module: nn.Module, int8: bool) -> int:
    """Bytes of a module's own frozen weights; a Linear layer in 8 bits has a byte a value and a scale a row."""
    frozen = [parameter for parameter in module.parameters(recurse=False) if not parameter.requires_grad]
    total = sum(parameter.nbytes for parameter in frozen)
    if int8 and isinstance(module, nn.Linear) and frozen:
        total -= module.weight.nbytes - module.weight.numel() - FP32 * module.out_features
    return total + sum(buffer.nbytes for buffer in module.buffers(recurse=False))

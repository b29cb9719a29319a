"""How torch computes: device, threads, and nothing that varies from run to run."""

from __future__ import annotations

import os

import torch
from safetensors.torch import load, save
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def configure_torch(processes: int = 1) -> torch.device:
    """Use every core of this process's share, exact float32, deterministic kernels; return the device to compute on.

    Args:
        processes: how many of this machine compute together; each gets its part of the cores.

    The thread count is set here since Snakemake sets OMP_NUM_THREADS, and other threads can round differently.
    """
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda")


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as safetensors bytes; equal tensors give equal bytes."""
    return save({name: tensor.detach().contiguous().cpu() for name, tensor in sorted(tensors.items())})


def unpack(data: bytes) -> dict[str, Tensor]:
    """Tensors from safetensors bytes, on the CPU."""
    tensors: dict[str, Tensor] = load(data)
    return tensors


def check_finite(tensors: dict[str, Tensor], what: str) -> None:
    """Raises `FloatingPointError` when a tensor holds NaN or infinity: such a cell is never written."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{what}: {name} holds NaN or infinite values")

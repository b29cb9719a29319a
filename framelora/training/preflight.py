"""What is wrong with training parameters on this machine, in one line each, before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from framelora.console import UserError
from framelora.training.checkpoint import STATE
from framelora.training.trackers import check_installed

if TYPE_CHECKING:
    from framelora.params import Params

START = Path("models/start")


def check_parameters(params: Params) -> None:
    """Refuse what this machine or its packages can't do.

    Raises:
        UserError: names the parameter.
    """
    train = params.train
    if train.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.mixed_precision: fp16 needs a GPU: set it to bf16 or no")
    if train.optimizer == "adamw_8bit":
        if not torch.cuda.is_available():
            raise UserError("train.optimizer: adamw_8bit needs a GPU: set it to adamw")
        need("bitsandbytes", "train.optimizer: adamw_8bit")
        if train.offload_optimizer:
            raise UserError("train.offload_optimizer: adamw_8bit steps on the GPU: set optimizer to adamw")
    if train.optimizer == "prodigy":
        need("prodigyopt", "train.optimizer: prodigy")
    if train.base_int8:
        need("bitsandbytes", "train.base_int8")
    for name in ("base_int8", "base_fp8"):
        if getattr(train, name) and (params.adapter.init == "pissa" or params.adapter.use_dora):
            raise UserError(f"train.{name}: PiSSA and DoRA need the base's exact weights: set it to false")
    if train.single_files and (train.unet != "lora" or params.adapter.use_dora):
        raise UserError(
            "train.single_files: only a LoRA of the denoiser, and no DoRA, has such a file: set it to false"
        )
    check_installed(train.report_to)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes not in (1, train.num_processes):
        raise UserError(f"train.num_processes is {train.num_processes}, but {processes} processes were started")


def need(package: str, what: str) -> None:
    """Raise `UserError` when a package is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs {package}: `pip install {package}`, or choose another")


def checkpoint_to_resume(name: str) -> Path:
    """The folder of a checkpoint to go on from; `latest` is that of the highest step in models/start/.

    Files `checkpoint-N.safetensors` beside the folders are weights alone, and do not count.

    Raises:
        UserError: there is none.
    """
    if name != "latest":
        return starting_folder(name)
    steps = {}
    for path in START.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal() and (path / STATE).is_file():
            steps[int(number)] = path
    if not steps:
        raise UserError(
            f"train.resume_from_checkpoint: latest: {START}/ holds no folder checkpoint-N with {STATE} (a .safetensors "
            "file has no state): copy one of models/checkpoints/ there"
        )
    return steps[max(steps)]


def starting_folder(name: str) -> Path:
    """The folder of an earlier adapter or checkpoint.

    Raises:
        UserError: it is not inside models/start/, the one folder that the graph watches for this, or not there.
    """
    folder = Path(name)
    if not folder.resolve().is_relative_to(START.resolve()) or folder.resolve() == START.resolve():
        raise UserError(f"{name} does not lie in {START}/: copy it there (DVC empties its own folders before a run)")
    if not folder.is_dir():
        raise UserError(f"{name} does not exist: copy the adapter or checkpoint there")
    return folder

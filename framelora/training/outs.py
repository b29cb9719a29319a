"""What the train stage publishes, as files: pure functions of a run's cells."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load
from torch import Tensor

from framelora.adapters.folder import CONFIG, WEIGHTS
from framelora.adapters.peft_folder import read_lineage, read_peft
from framelora.adapters.single_file import Naming, kohya_file
from framelora.compute import pack, unpack
from framelora.training.checkpoint import STATE

Files = Mapping[str, bytes]
MAIN = "unet_lora/"  # an adapter of the denoiser lies at the top of models/adapter/


def pack_files(files: Files) -> bytes:
    """Files as one cell's payload."""
    return pack({name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()})


def unpack_files(payload: bytes) -> dict[str, bytes]:
    """The files that `pack_files` packed."""
    return {name: tensor.numpy().tobytes() for name, tensor in unpack(payload).items()}


def adapter_folder(files: Files) -> dict[str, bytes]:
    """models/adapter/: the trained weights, without the state of the run."""
    return {name.removeprefix(MAIN): data for name, data in files.items() if "/" in name and name[:6] != "state/"}


def checkpoints_folder(contents: Mapping[str, Files]) -> dict[str, bytes]:
    """models/checkpoints/: `checkpoint-N/`, `best/` and `final/`."""
    return {f"{name}/{file}": data for name, files in contents.items() for file, data in files.items()}


def single_files(contents: Mapping[str, Files], keys: Any) -> dict[str, bytes]:
    """`checkpoint-N.safetensors` and so on, with kohya's keys, for models/checkpoints/.

    Args:
        contents: files of each checkpoint, by the name of its folder.
        keys: the family's `keys` part.
    """
    naming = Naming(keys.NETWORK, keys.KOHYA_PREFIX, keys.original_name)
    made = {}
    for name, files in contents.items():
        weights = files[MAIN + WEIGHTS]
        lineage = read_lineage(metadata_of(weights))
        state = read_peft(load(weights), json.loads(files[MAIN + CONFIG]), lineage, name)
        made[f"{name}.safetensors"] = kohya_file(state, naming)
    return made


def metadata_of(weights: bytes) -> dict[str, str]:
    """The metadata in a safetensors file's header."""
    length = int.from_bytes(weights[:8], "little")
    found: dict[str, str] = json.loads(weights[8 : 8 + length]).get("__metadata__", {})
    return found


def report_folder(final: Files, cell: str, versions: Mapping[str, str], levels: list[float]) -> dict[str, bytes]:
    """reports/train/: the curves, and a summary.

    Args:
        final: files of the final checkpoint.
        cell: key of the training cell.
        versions: of the libraries that trained.
        levels: noise level in the middle of each share of the validation loss.
    """
    state = json.loads(final[STATE])
    history = pd.DataFrame(state["history"])
    steps = history[history.step > 0]
    weights = {name: data for name, data in final.items() if name.endswith(".safetensors") and name[:6] != "state/"}
    summary: dict[str, Any] = {
        "cell": cell,
        "versions": dict(versions),
        "steps": int(steps.step.iloc[-1]),
        "trained_parameters": sum(tensor.numel() for data in weights.values() for tensor in tensors(data)),
        "adapter_bytes": sum(len(data) for data in weights.values()),
        "final_loss": round(float(steps.loss.iloc[-1]), 6),
    }
    curves = {"loss.tsv": steps[["step", "loss", "learning_rate", "grad_norm"]]}
    if "validation_loss" in history:
        measured = history.dropna(subset="validation_loss")
        names = [name for name in measured if name.startswith("validation_loss")]
        curves["validation.tsv"] = measured[["step", *names]]
        summary["validation_loss_base"] = round(float(measured.validation_loss.iloc[0]), 6)
        summary["validation_loss"] = round(float(measured.validation_loss.iloc[-1]), 6)
        summary["validation_noise_levels"] = [float(f"{level:.4g}") for level in levels]
        summary["best"] = {name: round(value, 6) for name, value in state["best"].items()}
    files = {name: to_tsv(table) for name, table in curves.items()}
    text = json.dumps(summary, sort_keys=True, indent=2, allow_nan=False) + "\n"
    return files | {"run.json": text.encode()}


def tensors(data: bytes) -> list[Tensor]:
    """The tensors of a safetensors file."""
    return list(load(data).values())


def to_tsv(table: pd.DataFrame) -> bytes:
    """A table for DVC's plots."""
    buffer = io.StringIO()
    table.to_csv(buffer, sep="\t", index=False, float_format="%.6g")
    return buffer.getvalue().encode()

"""Compares `framelora doctor --memory`'s estimates with the peak that training really takes on the CPU.

Each measurement is a process of its own, with one thread: a first step of a small network brings the libraries to
their size, then the kernel's high-water mark of resident memory is set back, and two optimizer steps are taken. What
is printed is the highest mark minus what was there before the networks were built. It is measured twice: with a page
mapping for each block of 64 KiB and more (the memory that was asked for), and with glibc's own threshold, which rises
as blocks are freed, so that holes in its heap count too.

    python benchmarks/memory.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from framelora.commands.memory import memory_of
from framelora.params import Params, load_params
from framelora.schema.training import Train
from framelora.source import load_part

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("framer", {"unet": "lora", "train_batch_size": 1, "gradient_checkpointing": False}),
    ("framer", {"unet": "lora", "train_batch_size": 4, "gradient_checkpointing": False}),
    ("framer", {"unet": "lora", "train_batch_size": 4, "gradient_checkpointing": True}),
    ("framer", {"unet": "lora", "train_batch_size": 1, "gradient_checkpointing": True, "base_fp8": True}),
    ("framer", {"unet": "full", "train_batch_size": 1, "gradient_checkpointing": False}),
    ("framer", {"unet": "full", "train_batch_size": 4, "gradient_checkpointing": True}),
    ("framer", {"unet": "lora", "controlnet": "full", "train_batch_size": 4, "gradient_checkpointing": False}),
    ("easyanimate", {"unet": "lora", "train_batch_size": 1, "gradient_checkpointing": False}),
    ("easyanimate", {"unet": "lora", "train_batch_size": 4, "gradient_checkpointing": True}),
    ("easyanimate", {"unet": "full", "train_batch_size": 4, "gradient_checkpointing": False}),
    ("easyanimate", {"unet": "lora", "train_batch_size": 4, "gradient_checkpointing": True, "base_fp8": True}),
]
WINDOW = {"num_frames": 5, "width": 96, "height": 64}
REPOSITORY = Path(__file__).resolve().parent.parent


def configured(family: str, train: dict[str, Any]) -> Params:
    """The shipped parameters for a family's tiny base, with other values of `train`."""
    params = load_params(REPOSITORY / "params.yaml")
    return params.model_copy(
        update={
            "model": params.model.model_copy(
                update={"family": family, "base": str(REPOSITORY / f"bases/tiny-{family}")}
            ),
            "train": Train.model_validate(params.train.model_dump() | train),
        }
    )


def measure(family: str, train: dict[str, Any], window: dict[str, int]) -> int:
    """Bytes of resident memory that two training steps add to a process, at their highest."""
    import torch

    from framelora.training.items import Items
    from framelora.training.networks import build_networks, trained_parameters
    from framelora.training.optimizer import Stepper, learning_rates

    torch.set_num_threads(1)
    params = configured(family, train)
    loss, base = load_part(family, "loss"), Path(params.model.base)
    footprint = load_part(family, "footprint")

    def steps(window: dict[str, int], count: int) -> None:
        shown = {"controlnet": True} if params.train.controlnet != "none" else {}
        item = footprint.example_batch(base, params.family, **window, **shown)
        items = Items(["zeros"], [(1,)], lambda _number, _seed: item)
        networks = build_networks(loss, base, params.adapter, params.train, None).train()
        others = {name: network for name, network in networks.items() if name != "unet"}
        stepper = Stepper(trained_parameters(networks), learning_rates(networks, params.train), params.train)
        for step in range(count):
            seeds = [step * params.train.train_batch_size + place for place in range(params.train.train_batch_size)]
            batch = items.batch([0] * len(seeds), seeds, torch.device("cpu"))
            value = loss.loss(networks["unet"], batch, seeds, base, params.family, **others).mean()
            value.backward()
            stepper.clip(params.train.max_grad_norm, None)
            stepper.step(None)

    steps({"num_frames": window["num_frames"], "width": 32, "height": 32}, 1)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM back to what is resident now
    before = status("VmRSS")
    steps(window, 2)
    return status("VmHWM") - before


def status(name: str) -> int:
    """A value of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def measured_apart(family: str, train: dict[str, Any], window: dict[str, int], *, holes: bool = False) -> int:
    """`measure` in a process of its own; `holes` leaves glibc its way."""
    command = [sys.executable, str(Path(__file__).resolve()), family, json.dumps(train), json.dumps(window)]
    environment = os.environ | ({} if holes else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    return int(done.stdout)


def main() -> None:
    """Print estimate, measurement and their ratio for each setting."""
    print(f"{'family':<12}{'setting':<52}{'estimate':>12}{'measured':>12}{'ratio':>8}{'with holes':>12}")
    for family, train in SETTINGS:
        params = configured(family, train)
        expected = memory_of(params, Path(params.model.base), WINDOW, gpu=False).peak
        found = measured_apart(family, train, WINDOW)
        with_holes = measured_apart(family, train, WINDOW, holes=True)
        setting = ", ".join(f"{name.removeprefix('train_')} {value}" for name, value in train.items())
        setting = setting.replace("gradient_checkpointing", "checkpointing")
        shown = [f"{value / 2**20:,.0f} MiB" for value in (expected, found, with_holes)]
        print(
            f"{family:<12}{setting:<52}{shown[0]:>12}{shown[1]:>12}{expected / found:>8.2f}{shown[2]:>12}", flush=True
        )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(measure(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])))
    else:
        main()

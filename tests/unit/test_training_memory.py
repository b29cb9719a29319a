"""Estimates of training's memory: known counts, what each switch changes, and a peak that was really measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from framelora.adapters.live import float8_layers
from framelora.cli import app
from framelora.commands.memory import configurations, largest_window, memory_of, name_of, preset_params
from framelora.params import Params, load_params
from framelora.schema.training import Adapter, Train
from framelora.source import load_part
from framelora.training.memory import STATE_BYTES, Memory
from framelora.training.optimizer import Stepper

BASES = {family: REPOSITORY / f"bases/tiny-{family}" for family in ("framer", "easyanimate")}
WINDOW = {"num_frames": 5, "width": 32, "height": 32}


def configured(family: str = "framer", adapter: dict[str, Any] | None = None, **train: Any) -> Params:
    params = load_params(REPOSITORY / "params.yaml")
    shown = params.model_copy(update={"model": params.model.model_copy(update={"family": family})})
    return shown.model_copy(
        update={
            "adapter": Adapter.model_validate(params.adapter.model_dump() | (adapter or {})),
            "train": Train.model_validate(params.train.model_dump() | train),
        }
    )


def memory(family: str = "framer", adapter: dict[str, Any] | None = None, gpu: bool = False, **train: Any) -> Memory:
    return memory_of(configured(family, adapter, **train), BASES[family], WINDOW, gpu=gpu)


@pytest.fixture(scope="module")
def plain() -> Memory:
    return memory()


@pytest.mark.parametrize("family", ["framer", "easyanimate"])
def test_checkpointing_lowers_activations_and_nothing_else(family: str) -> None:
    kept, again = memory(family), memory(family, gradient_checkpointing=True)
    assert again.activations < 0.8 * kept.activations
    assert again.peak < 0.8 * kept.peak
    for part in ("parameters", "frozen", "trained", "gradients", "optimizer"):
        assert getattr(again, part) == getattr(kept, part)


def test_bf16_halves_the_frozen_weights_and_leaves_what_is_trained(plain: Memory) -> None:
    half = memory(mixed_precision="bf16")
    assert half.frozen * 2 == plain.frozen
    assert (half.trained, half.optimizer) == (plain.trained, plain.optimizer)
    assert half.activations < 0.9 * plain.activations
    # A GPU's autocast normalises in fp32, and what goes into a normalisation is kept.
    assert half.activations < memory(mixed_precision="bf16", gpu=True).activations
    # PiSSA rewrites the base's weights, which stay fp32 for it.
    assert memory(adapter={"init": "pissa"}, mixed_precision="bf16").frozen == plain.frozen


def test_a_batch_of_four_takes_four_times_the_activations(plain: Memory) -> None:
    one = memory(train_batch_size=1)
    assert 3.5 * one.activations < plain.activations < 4.1 * one.activations  # the shipped batch is four
    assert (one.frozen, one.gradients) == (plain.frozen, plain.gradients)


def test_weights_are_those_of_the_base(plain: Memory) -> None:
    files = (BASES["framer"] / "unet").glob("*.safetensors")
    values = sum(tensor.numel() for path in files for tensor in load_file(path).values())
    assert plain.frozen == 4 * values  # fp32 in memory, however they are stored
    assert plain.trained == plain.gradients == 4 * plain.parameters
    whole = memory(unet="full")
    assert (whole.frozen, whole.trained) == (0, plain.frozen)
    assert memory(unet="full", ema_decay=0.9).optimizer == whole.optimizer + whole.trained


def test_a_stock_unet_is_counted_as_it_is_loaded_with_a_ninth_channel(plain: Memory, tmp_path: Path) -> None:
    for part in BASES["framer"].iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "unet").unlink()
    config = json.loads((BASES["framer"] / "unet/config.json").read_text())
    assert config["in_channels"] == 2 * config["out_channels"] + 1
    config |= {"in_channels": 2 * config["out_channels"], "_class_name": "UNetSpatioTemporalConditionModel"}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    assert memory_of(configured(), tmp_path, WINDOW, gpu=False) == plain


def test_8_bit_layers_are_counted_as_such(plain: Memory) -> None:
    small = memory(base_int8=True)
    linear = 0
    with torch.device("meta"):
        from framelora.families.framer.keys import empty_denoiser

        for module in empty_denoiser(BASES["framer"]).modules():
            if isinstance(module, nn.Linear):
                linear += 3 * module.weight.numel() - 4 * module.out_features
    assert plain.frozen - small.frozen == linear


@pytest.mark.parametrize("family", ["framer", "easyanimate"])
def test_float8_layers_take_a_byte_a_value_and_one_blocks_copies_while_they_compute(family: str) -> None:
    exact, small = (memory(family, gradient_checkpointing=True, base_fp8=fp8) for fp8 in (False, True))
    with torch.device("meta"):
        layers = float8_layers(load_part(family, "keys").empty_denoiser(BASES[family]))
    values = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    assert exact.frozen - small.frozen == 3 * sum(values)
    assert 4 * max(values) <= small.activations - exact.activations < 0.7 * 4 * sum(values)
    assert small.peak < exact.peak


@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_the_optimizers_states_are_as_large_as_it_makes_them(name: str) -> None:
    layer = nn.Linear(64, 64)
    stepper = Stepper({"unet.weight": layer.weight}, {"unet": 1e-3}, configured(optimizer=name).train)
    layer(torch.ones(1, 64)).sum().backward()
    stepper.step(None)
    states = sum(tensor.nbytes for tensor in stepper.state()[0].values())
    assert states == pytest.approx(STATE_BYTES[name] * layer.weight.numel(), abs=64)  # and a few single numbers


def test_offloaded_states_leave_the_gpu() -> None:
    there = memory(gpu=True, offload_optimizer=True)
    assert there.optimizer == 0
    assert there.host == memory(gpu=True).optimizer + there.trained + there.gradients


@pytest.mark.nightly
def test_the_published_sizes_stand_in_for_a_base_that_is_not_there(tmp_path: Path) -> None:
    """The guide's log: 52,117,504 trainable parameters at rank 64; 1,524,625,966 in the UNet (fp16 here)."""
    from framelora.families.framer import footprint, keys, loss
    from framelora.training.memory import estimate

    params = preset_params(REPOSITORY / "presets/framer_512x320.yaml")
    footprint.write_published(tmp_path)
    parts = {"loss": loss, "keys": keys, "footprint": footprint}
    tiny = {"num_frames": 3, "width": 64, "height": 64}
    found = estimate(parts, tmp_path, params.family, params.adapter, params.train, tiny, gpu=True)
    assert found.parameters == 52_117_504
    assert found.frozen == 2 * 1_524_625_966
    assert (found.gradients, found.optimizer) == (4 * 52_117_504, 8 * 52_117_504)
    assert largest_window(params) == {"num_frames": 14, "width": 512, "height": 320}


def test_the_rows_are_those_of_the_guide() -> None:
    params = preset_params(REPOSITORY / "presets/framer_512x320.yaml")
    assert [name for name, _ in configurations(params)] == [
        "LoRA (rank=64) + UNet",
        "without gradient checkpointing",
        "LoRA (rank=128) + UNet",
        "LoRA (rank=64) + UNet + ControlNet",
        "Full fine-tuning",
    ]
    assert name_of(configured(controlnet="full")) == "LoRA (rank=8) + UNet + ControlNet (full)"
    names = [name for name, _ in configurations(configured("easyanimate"))]
    assert names == [
        "LoRA (rank=8) + transformer",
        "with gradient checkpointing",
        "LoRA (rank=16) + transformer",
        "Full fine-tuning",
    ]


def test_the_doctor_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framelora.commands.memory.largest_window", lambda _: WINDOW)
    monkeypatch.chdir(REPOSITORY)
    result = CliRunner().invoke(app, ["doctor", "--memory"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "4 x 5 frames of 32x32, mixed_precision: no" in result.stdout
    assert "LoRA (rank=8) + UNet + ControlNet" in result.stdout
    result = CliRunner().invoke(app, ["doctor", "--preset", "presets/none.yaml"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory_benchmark", REPOSITORY / "benchmarks/memory.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_estimate_is_near_a_measured_peak(benchmark: ModuleType) -> None:
    train = {"unet": "lora", "train_batch_size": 4, "gradient_checkpointing": False}
    window = {"num_frames": 5, "width": 96, "height": 64}
    measured = benchmark.measured_apart("framer", train, window)
    params = benchmark.configured("framer", train)
    estimated = memory_of(params, Path(params.model.base), window, gpu=False).peak
    assert estimated == pytest.approx(measured, rel=0.15)

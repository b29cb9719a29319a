"""The train stage as a process: what it builds, and what a killed run ends in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from conftest import Project
from safetensors import safe_open
from safetensors.torch import load_file

from framelora.base_model import fingerprint
from framelora.dataset.tables import read_windows
from framelora.digest import canonical_json, sha256
from framelora.families.base import ALL_ROWS
from framelora.files import read_table
from framelora.params import load_params
from framelora.source import source_digest
from framelora.training.live import LiveReader

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("train")]

STEPS = 6


@pytest.fixture(scope="module")
def encoded(make_project: Callable[..., Project]) -> Project:
    """A project whose latents are cached, and which trains a few steps with a checkpoint after every second."""
    project = make_project(
        train__max_train_steps=STEPS, train__checkpointing_steps=2, train__gradient_accumulation_steps=2,
        adapter__dropout=0.1,
    )  # fmt: skip
    for stage in ("captions", "extract", "pair", "encode"):
        project.stage(stage)
    return project


def adapter_of(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((project.root / "models/adapter").iterdir())}


def forget_the_run(project: Project) -> None:
    for path in (project.root / ".cells/train").rglob("*.cell"):
        path.unlink()


def test_it_builds_no_vae_and_no_image_encoder(
    encoded: Project, monkeypatch: pytest.MonkeyPatch, refuse_to_build: Callable[..., None]
) -> None:
    from stages import train

    refuse_to_build(diffusers.AutoencoderKLTemporalDecoder, transformers.CLIPVisionModelWithProjection)
    monkeypatch.chdir(encoded.root)
    train.main()
    assert (encoded.root / "models/adapter/adapter_model.safetensors").is_file()


def test_a_finished_run_is_published_again_without_training(encoded: Project) -> None:
    before = adapter_of(encoded)
    for path in (encoded.root / "models/adapter").iterdir():
        path.unlink()
    encoded.set(framer__conditioning__condition_noise_seed=5)  # of a bank that is off
    run = encoded.stage("train")
    assert run.computed_kinds == set()
    assert adapter_of(encoded) == before
    encoded.set(framer__conditioning__condition_noise_seed=0)


def test_the_adapter_is_a_peft_folder_that_learned_and_names_its_cell(encoded: Project) -> None:
    folder = encoded.root / "models/adapter"
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        lineage = json.loads(file.metadata()["framelora"])
        moved = [name for name in file.keys() if "lora_B" in name and file.get_tensor(name).abs().max() > 0]  # noqa: SIM118
    assert moved
    assert lineage["cell"] == json.loads((encoded.root / "reports/train/run.json").read_text())["cell"]
    params = load_params(encoded.root / "params.yaml")
    assert lineage["train"]["learning_rate"] == params.train.learning_rate
    assert lineage["adapter"]["rank"] == params.adapter.rank
    assert (lineage["model"]["family"], lineage["model"]["objective"]["sigma_log_mean"]) == ("framer", 1.5)
    assert lineage["trained_steps"] == params.train.max_train_steps
    assert lineage["base"] == fingerprint(encoded.root / params.model.base)
    assert lineage["versions"]["torch"] == torch.__version__
    windows, latents = {}, {}
    for split in ("train", "val"):
        windows[split] = [
            vars(window) for window in read_windows(encoded.root / f"data/pairs_{split}.parquet", ["window"])
        ]
        rows = read_table(encoded.root / f"data/latents_{split}.parquet").itertuples()
        latents[split] = sorted([row.kind, row.unit, row.digest] for row in rows)
    assert lineage["data"] == sha256(canonical_json([windows, latents, [None, None]]).encode())
    code = [source_digest(f"framelora.{name}") for name in ("training.loop", "adapters.lora", "families.framer.loss")]
    assert lineage["source"] == sha256(canonical_json(code).encode())
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["lora_dropout"]) == ("LORA", 0.1)


def wait_for_checkpoint(project: Project, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process that trains has written the checkpoint of a step."""
    deadline = time.monotonic() + 120
    while not list((project.root / ".state").glob(f"*/checkpoint-{step:08d}")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def killed_after(project: Project, step: int) -> None:
    """Train until the checkpoint of a step is there, then kill the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=project.root, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_checkpoint(project, step, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((project.root / ".cells/train/adapter").rglob("*.cell"))


@pytest.mark.nightly
def test_dvc_that_is_killed_with_all_its_processes_goes_on_in_the_same_bytes(encoded: Project) -> None:
    encoded.repro("train")
    whole = adapter_of(encoded)
    forget_the_run(encoded)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    again = ["repro", "--force", "--single-item", "train"]
    process = subprocess.Popen(
        ["dvc", *again], cwd=encoded.root, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_checkpoint(encoded, 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (encoded.root / "models/adapter").exists()  # DVC empties its outs before a run
    run = encoded.repro(*again[1:])
    assert "going on from step 2" in run.stderr
    assert adapter_of(encoded) == whole


@pytest.mark.parametrize("wait_for", [2, 4])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(encoded: Project, wait_for: int) -> None:
    whole = adapter_of(encoded)
    curves = (encoded.root / "reports/train/loss.tsv").read_bytes()
    forget_the_run(encoded)
    killed_after(encoded, wait_for)
    run = encoded.stage("train")
    assert run.computed["train/adapter"] == 1
    assert f"going on from step {wait_for}" in run.stderr
    assert adapter_of(encoded) == whole
    assert (encoded.root / "reports/train/loss.tsv").read_bytes() == curves
    assert not list((encoded.root / ".state").glob("*/checkpoint-*"))


def test_a_run_that_diverges_stops_with_the_step_and_the_items(encoded: Project) -> None:
    encoded.set(train__learning_rate=1e12)
    run = encoded.stage("train", check=False)
    encoded.set(train__learning_rate=1e-3)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the ") and "learning_rate" in last


def test_half_precision_that_the_device_lacks_is_refused(encoded: Project) -> None:
    encoded.set(train__mixed_precision="fp16")
    run = encoded.stage("train", check=False)
    encoded.set(train__mixed_precision="no")
    assert run.returncode == 1
    assert "train.mixed_precision" in run.stderr.strip().splitlines()[-1]


def test_bf16_trains_with_an_fp32_adapter(encoded: Project) -> None:
    encoded.set(train__mixed_precision="bf16", train__max_train_steps=1, train__gradient_checkpointing=True)
    encoded.stage("train")
    with safe_open(encoded.root / "models/adapter/adapter_model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float32"}  # noqa: SIM118


def test_cached_training_has_the_losses_of_live_training(
    encoded: Project, losses_of: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws, bank and micro-batches: what differs is which frames the VAE saw together."""
    encoded.set(framer__conditioning__condition_noise="bank", train__mixed_precision="no", train__max_train_steps=20)
    encoded.stage("encode")
    cached = losses_of(encoded, train__latents="cached")
    live = losses_of(encoded, train__latents="live")
    assert len(live) >= 20 + 2
    assert live == pytest.approx(cached, rel=1e-5)

    real = LiveReader.read
    monkeypatch.setattr(  # the same frames, one row later: of the bank, or of the shot
        LiveReader, "read", lambda self, kind, unit, rows=ALL_ROWS: real(self, kind, unit, later(rows))
    )
    wrong = losses_of(encoded, train__max_train_steps=2)
    assert wrong[:3] != pytest.approx(cached[:3], rel=1e-3)
    encoded.set(framer__conditioning__condition_noise="off", train__latents="cached", train__max_train_steps=STEPS)
    encoded.stage("encode")


def later(rows: slice) -> slice:
    return rows if rows == ALL_ROWS else slice(rows.start - 1, rows.stop - 1) if rows.start else rows


def test_live_training_goes_on_after_a_kill_in_the_same_bytes(encoded: Project) -> None:
    """The encoders are built again in the middle of a run: that draws nothing from what the run draws."""
    encoded.set(train__latents="live", adapter__dropout=0.3, train__max_train_steps=4)
    encoded.stage("train")
    whole = adapter_of(encoded)
    forget_the_run(encoded)
    killed_after(encoded, 2)
    assert "going on from step 2" in encoded.stage("train").stderr
    assert adapter_of(encoded) == whole
    encoded.set(train__latents="cached", adapter__dropout=0.1, train__max_train_steps=STEPS)


def test_two_runs_of_one_cell_wait_for_each_other(encoded: Project) -> None:
    encoded.set(train__mixed_precision="no", train__max_train_steps=STEPS, train__gradient_checkpointing=False)
    forget_the_run(encoded)
    command = [sys.executable, "-m", "stages.train"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    runs = [
        subprocess.Popen(command, cwd=encoded.root, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum("train/adapter: 1 cells, 1 computed" in output for output in outputs) == 1, outputs
    assert Path(encoded.root / "models/adapter/adapter_model.safetensors").is_file()


def weights_of(project: Project, name: str = "models/adapter/adapter_model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(project.root / name)


def test_a_checkpoint_of_another_run_is_gone_on_from_by_its_name(encoded: Project) -> None:
    """With more steps: it ends where a run of that length ends, since nothing is drawn but by seed and step."""
    encoded.set(train__lr_scheduler="constant", train__lr_warmup_steps=0, adapter__dropout=0.0)
    encoded.stage("train")
    shutil.copytree(encoded.root / "models/checkpoints/checkpoint-4", encoded.root / "models/start/mine")
    encoded.set(train__max_train_steps=8)
    encoded.stage("train")
    whole = weights_of(encoded)
    encoded.set(train__resume_from_checkpoint="models/start/mine")
    assert encoded.stage("train").computed["train/adapter"] == 1
    gone_on = weights_of(encoded)
    assert all(torch.equal(gone_on[name], tensor) for name, tensor in whole.items())
    steps = [line.split("\t")[0] for line in (encoded.root / "reports/train/loss.tsv").read_text().splitlines()[1:]]
    assert {"5", "8"} <= set(steps)
    shutil.rmtree(encoded.root / "models/start/mine")
    encoded.set(train__max_train_steps=STEPS, train__resume_from_checkpoint=None)


def test_the_stage_starts_its_processes_which_share_each_batch(encoded: Project) -> None:
    encoded.set(adapter__dropout=0.0, train__max_train_steps=2, train__train_batch_size=4)
    encoded.stage("train")
    alone = weights_of(encoded)
    encoded.set(train__num_processes=2, train__train_batch_size=2)
    assert encoded.stage("train").computed["train/adapter"] == 1
    for name, tensor in weights_of(encoded).items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-5)
    encoded.set(train__num_processes=1, train__train_batch_size=4)


def test_a_controlnet_alone_is_trained_in_full(encoded: Project) -> None:
    encoded.set(
        train__unet="none", train__controlnet="full", framer__encode__tracks="lucas_kanade", train__max_train_steps=2
    )
    encoded.stage("encode")
    encoded.stage("train")
    assert {path.name for path in (encoded.root / "models/adapter").iterdir() if path.is_dir()} == {"controlnet"}
    trained = weights_of(encoded, "models/adapter/controlnet/diffusion_pytorch_model.safetensors")
    moved = [name for name, tensor in trained.items() if "controlnet_" in name and tensor.abs().max() > 0]
    assert moved  # these layers are zero where a ControlNet begins
    encoded.set(
        train__unet="lora", train__controlnet="none", framer__encode__tracks="none", train__max_train_steps=STEPS
    )
    encoded.stage("encode")

"""Every file of presets/: it fits the schema, and its models are built at their real size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from typer.testing import CliRunner

from framelora.adapters.lora import add_lora
from framelora.cli import app
from framelora.commands.preset import merged
from framelora.families.base import Window
from framelora.families.easyanimate.footprint import write_published
from framelora.families.easyanimate.keys import empty_denoiser
from framelora.families.easyanimate.networks.transformer import linear_layers
from framelora.families.easyanimate.units import check_window
from framelora.families.framer.loss import lora_targets
from framelora.families.framer.networks.controlnet import TrajectoryControlNet
from framelora.families.framer.networks.unet import FramerUNet
from framelora.params import load_params

PRESETS = sorted((REPOSITORY / "presets").glob("*.yaml"))
EASYANIMATE = [path for path in PRESETS if path.stem.startswith("easyanimate")]
FRAMER = [path for path in PRESETS if path.stem.startswith("framer")]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_it_fits_the_schema_and_keeps_the_comments(path: Path, project: Path) -> None:
    result = CliRunner().invoke(app, ["preset", str(path)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "# PySceneDetect" in (project / "params.yaml").read_text()
    assert load_params(project / "params.yaml").model.base.startswith(("checkpoints/", "bases/"))
    assert [file.name for file in project.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    "path", [path for path in PRESETS if not path.stem.startswith("demo")], ids=lambda path: path.stem
)
def test_what_suits_the_demo_alone_is_not_left_to_real_models(path: Path, project: Path) -> None:
    (project / "params.yaml").write_bytes(merged(REPOSITORY / "params.yaml", path))
    params = load_params(project / "params.yaml")
    assert params.pair.filters == []
    assert (params.captions.min_seconds, params.captions.max_seconds) == (2.0, 6.0)  # the demo's clips are shorter
    if params.model.family == "framer":  # SVD was trained with ln sigma ~ N(0.7, 1.6^2)
        assert (params.framer.objective.sigma_log_mean, params.framer.objective.sigma_log_std) == (0.7, 1.6)


@pytest.mark.parametrize("path", FRAMER, ids=lambda path: path.stem)
def test_framers_networks_are_built_at_full_size(path: Path, project: Path) -> None:
    """The guide's log: 52,117,504 trainable parameters at rank 64."""
    (project / "params.yaml").write_bytes(merged(REPOSITORY / "params.yaml", path))
    params = load_params(project / "params.yaml")

    def config(name: str) -> dict[str, Any]:
        published: dict[str, Any] = json.loads((REPOSITORY / f"tests/data/framer_{name}_keys.json").read_text())
        return dict(published["config"])

    with torch.device("meta"):
        unet = FramerUNet(**config("unet"))
        model = add_lora(unet, params.adapter, lora_targets(unet), seed=0)
        controlnet = TrajectoryControlNet(**config("controlnet"))
        steered = add_lora(controlnet, params.adapter, lora_targets(controlnet), seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == 52_117_504 * params.adapter.rank // 64
    assert sum(parameter.numel() for parameter in unet.parameters()) - trained == 1_524_625_966
    assert any(parameter.requires_grad for parameter in steered.parameters())
    for bucket in params.extract.buckets:
        assert all(int(side) % 64 == 0 for side in bucket.split("x"))  # 8 of the VAE, 8 of the UNet


@pytest.mark.parametrize("path", EASYANIMATE, ids=lambda path: path.stem)
def test_easyanimates_network_is_built_at_full_size(path: Path, project: Path) -> None:
    """Every Linear layer of the published 12B InP transformer is adapted; 3,000 steps, as the guide says."""
    (project / "params.yaml").write_bytes(merged(REPOSITORY / "params.yaml", path))
    params = load_params(project / "params.yaml")
    write_published(project / "base")
    transformer = empty_denoiser(project / "base")
    linear = [module for module in transformer.modules() if isinstance(module, torch.nn.Linear)]
    expected = params.adapter.rank * sum(layer.in_features + layer.out_features for layer in linear)
    with torch.device("meta"):
        model = add_lora(transformer, params.adapter, linear_layers(transformer), seed=0)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected
    assert len(linear) > 48 * 12
    assert params.train.max_train_steps == 3000
    for bucket in params.extract.buckets:
        width, height = map(int, bucket.split("x"))
        window = Window("p", "c", "window", "s", 0, "s", 0, params.pair.num_frames, width, height)
        # Sizes and lengths, which are seen first, fit; what this base lacks is its weights.
        problem = str(check_window(window, project / "base"))
        assert "transformer/diffusion_pytorch_model.safetensors is missing" in problem
    static = "ufo" in path.stem
    assert (params.easyanimate.conditioning.static_clips == "middle_frame") == static
    assert (params.pair.short_shots == "still") == static
    assert static or params.pair.num_frames <= 6 * params.extract.fps  # the guide's clips last 2 to 6 s


def test_a_preset_that_does_not_fit_changes_nothing(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    cases = {
        "pair:\n  num_framse: 14\n": "pair.num_framse",
        "pair:\n  num_frames: 2\n": "pair.num_frames",
        "- a\n": "no sections",
        "a: [\n": "not valid YAML",
    }
    for text, message in cases.items():
        (project / "bad.yaml").write_text(text)
        result = CliRunner().invoke(app, ["preset", "bad.yaml"])
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.stderr
        assert message in result.stderr
    assert "does not exist" in CliRunner().invoke(app, ["preset", "none.yaml"]).stderr
    assert (project / "params.yaml").read_bytes() == before
    assert sorted(file.name for file in project.iterdir()) == ["bad.yaml", "params.yaml"]

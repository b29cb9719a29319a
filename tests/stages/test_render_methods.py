"""Methods that a run renders only when it is asked to: other numbers of steps and samplers, and along tracks."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
from conftest import Project

pytestmark = pytest.mark.nightly
CLIPS = ("bunny_wakes", "bunny_scratches_head", "cloud_over_trees")
SWEPT = {"steps_euler_2", "steps_dpm++_2", "steps_lcm_2"}


@pytest.fixture(scope="module")
def project(make_project: Callable[..., Project]) -> Project:
    project = make_project(clips=CLIPS, train__max_train_steps=1, score__metrics=["psnr"])
    project.set(framer__encode__tracks="lucas_kanade", train__controlnet="full")
    for stage in ("captions", "extract", "pair", "encode", "train", "render"):
        project.stage(stage)
    return project


def counts(project: Project) -> dict[str, int]:
    """How many samples of each method the index names."""
    return dict(pd.read_parquet(project.root / "data/renders.parquet").method.value_counts())


def test_a_sweep_of_steps_renders_only_what_is_new_and_the_page_plots_it(project: Project) -> None:
    before = counts(project)
    project.set(render__step_sweep=[1, 2])
    run = project.stage("render")
    windows = pd.read_parquet(project.root / "data/pairs_test.parquet")
    pairs = len(windows)
    # One step of Euler is what the adapter is rendered with anyway.
    assert run.computed["render/adapter"] == 5 * pairs
    assert run.computed_kinds == {"render/adapter"}
    swept = {f"steps_{name}_{number}" for name in ("euler", "dpm++", "lcm") for number in (1, 2)}
    assert set(counts(project)) - set(before) == swept
    index = pd.read_parquet(project.root / "data/renders.parquet").set_index(["pair", "method"]).cell
    first = windows.pair.iloc[0]
    assert index[first, "steps_euler_1"] == index[first, "adapter_1"]

    project.set(render__step_sweep=[1, 2, 3])
    assert project.stage("render").computed["render/adapter"] == 3 * pairs
    project.stage("score")
    assert {f"psnr_{method}" for method in SWEPT} <= set(project.metrics())
    assert not any("gain_steps" in key for key in project.metrics())
    project.stage("report")
    page = (project.root / "reports/index.html").read_text()
    assert "PSNR by steps" in page
    project.set(render__step_sweep=[])


def test_renders_along_tracks_are_methods_of_their_own(project: Project) -> None:
    project.set(framer__render__tracks="own")
    run = project.stage("render")
    windows = pd.read_parquet(project.root / "data/pairs_test.parquet").query("kind == 'window'")
    assert {kind: number for kind, number in run.computed.items() if number} == {"render/adapter": len(windows)}
    assert counts(project)["steered_1"] == len(windows)
    project.stage("score")
    assert {"psnr_steered_1", "psnr_gain_steered_1", "psnr_gain_steered_1_low"} <= set(project.metrics())

    project.set(train__controlnet="none")
    error = project.stage("render", check=False)
    assert error.returncode == 1
    assert error.stderr.startswith("error: params.yaml: framer.render.tracks: own steers by a ControlNet")

"""A grid of parameters shares every encode, and leaves the workspace as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
FRAMELORA = (sys.executable, "-c", "from framelora.cli import app; app()")  # the project's own code


def test_a_sweep_encodes_once_and_ends_in_one_table_and_one_plot(make_project: Callable[..., Project]) -> None:
    project = make_project(score__metrics=["psnr"])
    project.repro()
    project.git("add", "-A")
    project.git("commit", "-qm", "run")
    before = project.outs()
    run = project.run(*FRAMELORA, "sweep", "adapter.rank=2,4", "train.learning_rate=0.001,0.01")
    assert "encode/latents" not in run.computed_kinds
    assert "render/base" not in run.computed_kinds
    assert run.computed["train/adapter"] == 4
    assert "4 experiments" in run.stdout
    assert (project.root / "reports/sweep/index.html").read_text().count("<tr><td") == 4
    found = {name: data for name, data in project.outs().items() if not name.startswith("reports/sweep/")}
    assert found == before
    assert project.run("git", "status", "--porcelain").stdout == ""
    assert project.run("dvc", "exp", "list", "--name-only").stdout.count("\n") == 4

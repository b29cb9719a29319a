"""`make demo-ufo`, as the README has it, on all of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Project, copy_repository

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


def test_a_weight_is_steadier_and_still_moves_and_adapters_act_together(tmp_path: Path) -> None:
    project = Project(tmp_path)
    copy_repository(tmp_path)
    project.git("init", "-q")
    project.git("add", "-A")
    project.git("commit", "-qm", "project")
    run = project.run("make", "-o", "setup", "demo-ufo")
    assert run.stdout.rstrip().endswith("report: runs/ufo/reports/index.html")
    metrics = Project(tmp_path / "runs/ufo").metrics()
    weights = [name.removeprefix("dynamics_") for name in metrics if name.startswith("dynamics_adapter_")]
    assert len(weights) >= 6
    good = [
        name
        for name in weights
        if metrics[f"warp_error_{name}"] < metrics["warp_error_base"] and metrics[f"dynamics_{name}"] >= 0.8
    ]
    page = (tmp_path / "runs/ufo/reports/index.html").read_text()
    assert ("Steadier at weight" in page) == bool(good)
    assert metrics["warp_error_still"] == metrics["flicker_still"] == 0  # why motion stands beside steadiness
    assert "dynamics_truth" in metrics
    assert {"warp_error_with_style", "warp_error_with_style_and_ufo"} <= metrics.keys()

"""Runs side by side: which of the planted runs is better and why, and what is said of a revision that is gone."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from conftest import Project, Run

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.xdist_group("compare")]
FRAMELORA = (sys.executable, "-c", "from framelora.cli import app; app()")  # the project's own code


@dataclass
class Runs:
    """A project with two finished runs in commits, and a third in the workspace that diverged."""

    project: Project
    page: str
    diverged: Run


def text_of(project: Project) -> str:
    page = (project.root / "reports/compare/index.html").read_text()
    return re.sub(r"\s+", " ", re.sub(r"<(script|style)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL))


@pytest.fixture(scope="module")
def runs(make_project: Callable[..., Project]) -> Runs:
    project = make_project(train__learning_rate=0.0, train__lr_warmup_steps=0, score__metrics=["psnr", "ssim"])
    project.repro()
    project.git("add", "-A")
    project.git("commit", "-qm", "a learning rate of zero")
    project.git("tag", "zero")
    project.set(train__learning_rate=0.05)
    project.repro()
    project.git("add", "-A")
    project.git("commit", "-qm", "a learning rate")
    project.set(train__learning_rate=1e30, train__max_grad_norm=1e30)
    diverged = project.run("dvc", "repro", check=False)
    before = project.run("git", "status", "--porcelain").stdout
    project.run(*FRAMELORA, "compare", "zero", "HEAD", "workspace")
    assert project.run("git", "status", "--porcelain").stdout == before
    return Runs(project, text_of(project), diverged)


def test_a_learning_rate_of_zero_is_told_as_no_improvement(runs: Runs) -> None:
    first = runs.page.partition("dB PSNR")[2].partition("dB PSNR")[0]
    assert "no improvement, the adapter leaves the base as it is" in first
    alone = re.sub(r"<[^>]*>", " ", (runs.project.root / "reports/index.html").read_text())
    assert "no improvement" not in alone  # that page is of the second run


def test_a_diverged_run_is_told_with_its_reason_and_shows_no_scores(runs: Runs) -> None:
    assert runs.diverged.returncode
    assert "workspace: the training stopped, so there is no adapter:" in runs.page
    note = json.loads((runs.project.root / "reports/stopped.json").read_text())
    assert re.search("nan|inf", note["reason"])
    assert note["reason"].split(";")[0] in runs.page
    assert "The last training stopped" in (runs.project.root / "reports/index.html").read_text()
    assert note["reason"].split(";")[0] in (runs.project.root / "reports/run.js").read_text()


def test_the_changed_parameters_are_listed_and_the_others_are_not(runs: Runs) -> None:
    changes = runs.page.partition("What changed")[2].partition("Scores")[0]
    assert "train.learning_rate 0.0 0.05 1e+30" in changes
    assert "train.seed" not in changes
    assert "The same sources in every revision" in changes


def test_the_same_samples_of_each_finished_revision_are_there_in_one_player(runs: Runs) -> None:
    page = (runs.project.root / "reports/compare/index.html").read_text()
    sources = re.findall(r'data-src="([^"]+)"', page)
    assert sources and all((runs.project.root / "reports/compare" / source).is_file() for source in sources)
    assert {source.split("/")[1] for source in sources} == {"0", "1"}
    first = page.partition('class="card group sample"')[2].partition("</section>")[0]
    methods = [source.split("/")[-1] for source in re.findall(r'data-src="([^"]+)"', first)]
    assert methods == ["truth.mp4", "base.mp4", "adapter_1.mp4", "base.mp4", "adapter_1.mp4"]


def test_parameters_put_back_are_a_run_again(runs: Runs) -> None:
    """The note of the stop belongs to the parameters that it was written under."""
    project = Project(runs.project.root.parent / "back")
    shutil.copytree(runs.project.root, project.root, symlinks=True)
    project.git("checkout", "-q", "params.yaml")
    project.repro()
    project.run(*FRAMELORA, "compare")
    assert "the training stopped" not in text_of(project)
    assert "no difference" in text_of(project)


def test_a_revision_whose_outs_are_gone_is_one_clear_line(runs: Runs) -> None:
    project = Project(runs.project.root.parent / "gone")
    shutil.copytree(runs.project.root, project.root, symlinks=True)
    project.git("checkout", "-q", "params.yaml")
    project.run("dvc", "checkout")
    project.run("dvc", "gc", "--workspace", "--force")
    run = project.run(*FRAMELORA, "compare", "zero", "HEAD", check=False)
    assert run.returncode == 1
    (line,) = run.stderr.strip().splitlines()
    commit = project.run("git", "rev-parse", "zero").stdout[:8]
    assert line.startswith("error: zero: ") and f"git checkout {commit} && dvc repro" in line
    unknown = project.run(*FRAMELORA, "compare", "nonsense", check=False)
    assert unknown.stderr == "error: nonsense is no revision, tag or experiment: see `git log` and `dvc exp show`\n"

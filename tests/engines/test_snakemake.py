"""workflow/Snakefile and its profiles in real Snakemake, beside real DVC: one graph, the same bytes, no work twice."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, Project, Run
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from ruamel.yaml import YAML

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.xdist_group("snakemake")]

CLIPS = ("bunny_stands_up", "bunny_scratches_head", "cloud_over_trees")  # dealt to train, val, test
HEAVY = ["extract", "encode", "render"]
SLURM = "workflow/profiles/slurm"
needs_slurm = pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
    reason="snakemake-executor-plugin-slurm is not installed (pip install -e '.[slurm]')",
)


def snakemake(project: Project, *options: str, check: bool = True) -> Run:
    """Snakemake, with what its jobs print and what it says itself in one text."""
    run = project.run("snakemake", "--cores", "2", *options, check=check)
    return Run(run.returncode, run.stdout + run.stderr, "")


def rules(run: Run) -> list[str]:
    """The rules that run, or would in a dry run, in order."""
    return re.findall(r"^(?:local)?rule (\w+):", run.stdout, re.MULTILINE)


def forget(project: Project) -> None:
    """Back to a checkout in which nothing ran: no outs, no cells, no state."""
    outs = ("models/adapter", "models/checkpoints", "reports")
    for folder in (".snakemake", ".state", ".cells", *outs, ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(project.root / folder, ignore_errors=True)
    for table in (project.root / "data").glob("*.parquet"):
        table.unlink()
    (project.root / "dvc.lock").unlink(missing_ok=True)


@dataclass
class Runs:
    """What the engines did in three projects, each with its own cells."""

    dvc: Project  # DVC alone
    warmed: Project  # `warm`, then DVC
    project: Project  # Snakemake alone, everything
    warm: Run
    repro_after_warm: Run
    everything: Run


@pytest.fixture(scope="module")
def fresh(make_project: Callable[..., Project]) -> Project:
    return make_project(CLIPS)


@pytest.fixture(scope="module")
def runs(fresh: Project, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    def copy(project: Project, name: str) -> Project:
        return Project(Path(shutil.copytree(project.root, tmp_path_factory.mktemp(name) / "project")))

    forget(fresh)
    alone = copy(fresh, "dvc")
    alone.repro()
    warm = snakemake(fresh, "warm")
    warmed = copy(fresh, "warmed")
    repro = warmed.repro("encode")  # with its upstream stages
    everything = snakemake(fresh)
    return Runs(alone, warmed, fresh, warm, repro, everything)


# The graph, by dry runs


@dataclass
class Rule:
    """What a dry run prints of a rule's jobs."""

    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    commands: set[str] = field(default_factory=set)
    resources: str = ""


def plan(run: Run) -> dict[str, Rule]:
    """The rules of a dry run."""
    found: dict[str, Rule] = {}
    for name, block in re.findall(r"^(?:local)?rule (\w+):\n((?:.+\n)+)", run.stdout, re.MULTILINE):
        lines = dict(re.findall(r"^(?:    )?([\w ]+): (.+)$", block, re.MULTILINE))
        rule = found.setdefault(name, Rule(resources=lines.get("resources", "")))
        rule.inputs |= set(lines.get("input", "").split(", "))
        rule.outputs |= set(lines.get("output", "").split(", "))
        rule.commands.add(lines.get("Shell command", ""))
    return found


def test_every_stage_is_a_rule_with_its_command_inputs_and_outs(fresh: Project) -> None:
    planned = plan(snakemake(fresh, "-n"))
    with Repo(str(fresh.root)) as repo:
        stages = repo.stage.load_all(str(fresh.root / "dvc.yaml"))
    assert {stage.name for stage in stages} | {f"{name}_shard" for name in HEAVY} | {"all"} == set(planned)
    for stage in stages:
        rule = planned[stage.name]
        assert rule.commands == {stage.cmd}
        assert rule.outputs == {out.def_path for out in stage.outs}
        for dep in stage.deps:
            folder = fresh.root / dep.def_path
            files = {str(path.relative_to(fresh.root)) for path in folder.rglob("*") if path.is_file()}
            assert isinstance(dep, ParamsDependency) or (files or {dep.def_path}) <= rule.inputs
    for name in HEAVY:
        assert planned[f"{name}_shard"].commands == {f"python -m stages.{name} --shard {i}/2" for i in (1, 2)}


@pytest.mark.parametrize("setting", ["shards=0", "shards=two", "shard=2"])
def test_a_wrong_setting_is_refused(fresh: Project, setting: str) -> None:
    run = snakemake(fresh, "-n", "--config", setting, check=False)
    assert run.returncode
    assert "config.schema.yaml" in run.stdout or "Error validating" in run.stdout


@pytest.mark.parametrize("name", ["default", pytest.param("slurm", marks=needs_slurm)])
def test_a_profile_is_understood(fresh: Project, name: str) -> None:
    planned = plan(snakemake(fresh, "-n", "--workflow-profile", f"workflow/profiles/{name}", "all"))
    on_gpu = {name for name, rule in planned.items() if re.search(r"\bgpu=1\b", rule.resources)}
    assert on_gpu == {"encode_shard", "encode", "train", "render_shard", "render"}
    profile = YAML(typ="safe").load(REPOSITORY / f"workflow/profiles/{name}/config.yaml")
    assert set(profile["set-resources"]) <= set(planned)


def test_every_key_of_a_profile_is_explained() -> None:
    for profile in REPOSITORY.glob("workflow/profiles/*/config.yaml"):
        top = [line for line in profile.read_text().splitlines() if re.match(r"[\w-]+:", line)]
        assert [line for line in top if "  #" not in line and " # " not in line] == []


@needs_slurm
def test_the_slurm_profile_names_options_and_rules_that_exist(fresh: Project) -> None:
    profile = YAML(typ="safe").load(REPOSITORY / SLURM / "config.yaml")
    options = fresh.run("snakemake", "--help").stdout
    assert [key for key in profile if not re.search(rf"--{key}\b", options)] == []
    assert profile["slurm-array-jobs"].split(",") == [f"{name}_shard" for name in HEAVY]


# The work, by real runs


def test_warm_leaves_no_cell_of_extract_and_encode_to_dvc(runs: Runs) -> None:
    assert rules(runs.warm) == [
        "captions", "extract_shard", "extract_shard", "extract", "pair", "encode_shard", "encode_shard", "warm"
    ]  # fmt: skip
    assert runs.repro_after_warm.stages == ["captions", "extract", "pair", "encode"]
    assert {"extract/shots", "extract/frames", "encode/latents", "encode/ends"} <= set(runs.repro_after_warm.computed)
    assert runs.repro_after_warm.computed_kinds == set()


@pytest.mark.parametrize("stage", ["extract", "encode"])  # the few pairs that are rendered can be one shard's
def test_shards_divide_the_work_and_leave_none_to_the_gather(runs: Runs, stage: str) -> None:
    journal = pd.read_json(runs.project.root / ".cells/journal.jsonl", lines=True).query("stage == @stage")
    shards, gather = journal.dropna(subset="shard"), journal[journal.shard.isna()]
    assert set(shards.shard) == {"1/2", "2/2"}
    assert (shards.groupby("shard").computed.sum() > 0).all()
    assert shards.groupby("kind").computed.sum().to_dict() == gather.groupby("kind").cells.max().to_dict()
    assert gather.computed.sum() == 0


def test_a_second_run_does_nothing(runs: Runs) -> None:
    assert "Nothing to be done" in snakemake(runs.project).stdout


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("report.title", "Another", {"report"}),
        ("score.seed", 1, {"score", "report"}),
        ("render.video_fps", 5, {"render_shard", "render", "score", "report"}),
    ],
)
def test_an_edited_parameter_reruns_its_stages(runs: Runs, parameter: str, value: object, expected: set[str]) -> None:
    path = runs.project.root / "params.yaml"
    before = path.read_text()
    runs.project.set_all({parameter: value})
    try:
        assert set(rules(snakemake(runs.project, "-n"))) == {*expected, "all"}
    finally:
        path.write_text(before)


def test_an_edited_code_file_reruns_its_stages(runs: Runs) -> None:
    path = runs.project.root / "framelora/evaluation/metrics.py"
    before = path.read_text()
    path.write_text(before + "\n# edited\n")
    try:
        assert set(rules(snakemake(runs.project, "-n"))) == {"score", "report", "all"}
    finally:
        path.write_text(before)


def test_a_clip_whose_name_looks_like_a_wildcard_is_seen(runs: Runs) -> None:
    odd = runs.project.root / "data/demo/clips/a {clip}.mp4"
    shutil.copyfile(REPOSITORY / "data/demo/clips/bunny_wakes.mp4", odd)
    try:
        assert "captions" in rules(snakemake(runs.project, "-n"))
    finally:
        odd.unlink()


# These leave the project to DVC, so they come last.


def test_all_gives_the_bytes_of_dvc_alone_and_leaves_it_nothing_to_compute(runs: Runs) -> None:
    project = runs.project
    assert project.outs() == runs.dvc.outs()
    run = project.repro()
    assert run.computed["train/adapter"] == 0
    assert run.computed_kinds == set()
    assert project.outs() == runs.dvc.outs()
    locks = [YAML(typ="safe").load(one.root / "dvc.lock") for one in (project, runs.dvc)]
    assert locks[0] == locks[1]  # so .snakemake_timestamp counts for nothing


def test_what_dvc_wrote_since_is_not_taken_for_fresh(runs: Runs) -> None:
    """Parameters are those of Snakemake's last run, every out is newer than its inputs; but it did not write them."""
    project = runs.project
    project.repro()
    assert rules(snakemake(project, "-n", "data/sources.parquet")) == ["captions"]
    for _ in range(2):  # written again, and then its own
        snakemake(project, "data/sources.parquet")
    assert "Nothing to be done" in snakemake(project, "-n", "data/sources.parquet").stdout
    assert project.outs() == runs.dvc.outs()

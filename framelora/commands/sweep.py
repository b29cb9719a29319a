"""`framelora sweep`: a grid of parameters as DVC experiments, one after the other, then one table and one plot."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from framelora import files
from framelora.commands.metrics import WIDTH
from framelora.console import UserError, say
from framelora.report.sweep import Trial, best_adapter, build_sweep
from framelora.report.verdict import count

PARAMS = Path("params.yaml")
OUT = Path("reports/sweep/index.html")


def sweep(
    grid: Annotated[list[str], typer.Argument(help="NAME=VALUE,VALUE,... for each parameter of the grid.")],
) -> None:
    """Run every combination as an experiment in the workspace; what a parameter does not touch is computed once.

    Afterwards the workspace is brought back to its own parameters, which computes nothing.
    """
    axes = [parse_axis(text) for text in grid]
    before = PARAMS.read_bytes()
    trials = []
    try:
        for values in itertools.product(*(values for _, values in axes)):
            settings = {name: value for (name, _), value in zip(axes, values, strict=True)}
            text = " ".join(f"{name}={value}" for name, value in settings.items())
            say(f"sweep: {text}")
            command = ["dvc", "exp", "run", *(part for name in settings for part in ("-S", f"{name}={settings[name]}"))]
            failed = subprocess.run(command, check=False).returncode
            metrics = None if failed else files.read_json(Path("reports/metrics.json"))
            trials.append(Trial(settings, metrics))
    finally:
        files.write_bytes(PARAMS, before)
    if subprocess.run(["dvc", "repro", "--quiet"], check=False).returncode:
        say("sweep: the run of the workspace's own parameters failed: see above")
    if all(trial.metrics is None for trial in trials):
        raise UserError("sweep: no experiment finished: mend what they say above")
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(as_table(trials))
    files.write_text(OUT, build_sweep(trials))
    say(f"sweep: {OUT}; the experiments: dvc exp show")


def parse_axis(text: str) -> tuple[str, list[str]]:
    """`name=1,2` as name and values. Raises `UserError` when it is not that."""
    name, equals, values = text.partition("=")
    if not (name and equals and all(values.split(","))):
        raise UserError(f"sweep: {text}: write it as NAME=VALUE,VALUE, for example adapter.rank=4,8")
    return name, values.split(",")


def as_table(trials: list[Trial]) -> Table:
    """The trials, best gain first."""
    table = Table(title=count(len(trials), "experiment"), title_justify="left")
    for name in trials[0].settings:
        table.add_column(name, justify="right")
    for title in ("adapter", "PSNR, dB", "gain over base, dB (95 %)"):
        table.add_column(title, justify="right")
    for trial in sorted(trials, key=lambda trial: trial.gain, reverse=True):
        adapter = best_adapter(trial.metrics)
        if trial.metrics is None or adapter is None:
            table.add_row(*trial.settings.values(), "-", "-", "failed" if trial.metrics is None else "not measured")
            continue
        low, high = (trial.metrics[f"psnr_gain_{adapter}_{end}"] for end in ("low", "high"))
        psnr = f"{trial.metrics[f'psnr_{adapter}']:.2f}"
        table.add_row(*trial.settings.values(), adapter, psnr, f"{trial.gain:+.3f} ({low:+.3f} to {high:+.3f})")
    return table

"""How long a `dvc repro` takes that has nothing to do, against DVC itself on an empty three-stage pipeline.

    python benchmarks/noop.py        (after `make demo`; run from the repository's root)

Prints both medians and the ratio, pair by pair in turn. Nothing is asserted: machines differ.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import typer

EMPTY = """\
stages:
  one: {cmd: touch one, outs: [one]}
  two: {cmd: touch two, deps: [one], outs: [two]}
  three: {cmd: touch three, deps: [two], outs: [three]}
"""


def repro(folder: Path) -> float:
    """Seconds of one `dvc repro`; it must run no stage."""
    begin = time.perf_counter()
    done = subprocess.run(["dvc", "repro"], cwd=folder, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begin
    assert "Running stage" not in done.stdout, "the pipeline was not up to date: run `dvc repro` first"
    return seconds


def main(rounds: int = 5) -> None:
    """Time both in turn."""
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name)
        (empty / "dvc.yaml").write_text(EMPTY)
        for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
            subprocess.run(command, cwd=empty, check=True)
        pairs = [(repro(Path.cwd()), repro(empty)) for _ in range(rounds + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [a / b for a, b in pairs]
    print(f"no-op repro {ours:.2f} s, empty pipeline {theirs:.2f} s (medians of {rounds})")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    typer.run(main)

"""reports/run.js: what a run cost and which commit made it. Not an out: it differs from run to run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

# What a run itself changes in a clean checkout.
MADE = tuple(f":(top,exclude,glob)**/{name}" for name in ("dvc.lock", "reports/**", ".gitignore"))


def run_script(page: str, commit: dict[str, Any] | None, costs: list[dict[str, Any]]) -> str:
    """A script that sets one JSON value; `page` is the digest that the page carries, so that it knows its own costs."""
    value = {"page": page, "commit": commit, "costs": costs}
    return f"window.framelora = {json.dumps(value, sort_keys=True, indent=1)};\n"


def page_digest(page: str) -> str:
    """The digest that a built page carries."""
    return page.partition('data-page="')[2].partition('"')[0]


def read_commit(folder: Path) -> dict[str, Any] | None:
    """The commit of a git work tree and whether tracked files differ from it; None outside of one."""
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return None
    return {"id": head, "dirty": bool(_git(folder, "status", "--porcelain", "-uno", "--", ":(top)", *MADE))}


def _git(folder: Path, *arguments: str) -> str | None:
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    except OSError:  # no git on this machine
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def read_costs(journal: Path) -> list[dict[str, Any]]:
    """The last run of each stage in a cell store's journal, in the order of their first runs.

    A run writes a line for each kind of cell, so a kind that comes again starts the stage's next run.
    """
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        lines = journal.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
            stage, kind = record["stage"], record["kind"]
        except (ValueError, KeyError, TypeError):  # torn by a crash
            continue
        kinds = runs.get(stage, {})
        runs[stage] = {kind: record} if kind in kinds else kinds | {kind: record}
    return [_cost(stage, list(kinds.values())) for stage, kinds in runs.items()]


def _cost(stage: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = [{name: record[name] for name in ("kind", "cells", "computed", "reused")} for record in records]
    return {
        "stage": stage,
        "seconds": max(record["seconds"] for record in records),
        "peak_memory_mib": max(record["peak_memory_mib"] for record in records),
        "kinds": kinds,
    }

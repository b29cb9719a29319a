"""Peak memory is a process's own, whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from framelora import memory

SHOW = "from framelora.memory import peak_resident; print(peak_resident())"


def test_what_the_starting_process_had_does_not_count() -> None:
    start = f"""
import subprocess, sys
held = b"x" * (400 << 20)
subprocess.run([sys.executable, "-c", {SHOW!r}], check=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", start], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert 2**20 < int(done.stdout) < 300 << 20


def test_what_was_freed_counts() -> None:
    take = f"held = b'x' * (400 << 20); del held; {SHOW}"
    done = subprocess.run(
        [sys.executable, "-c", take], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert 400 << 20 < int(done.stdout) < 700 << 20


def test_where_there_is_no_proc_getrusage_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = memory.peak_resident()
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    assert memory.peak_resident() >= 0.9 * own

"""The cell store among real processes: killed writers, real full and read-only disks, writers of one key at once.

Each script runs in a fresh interpreter and forks from there what it needs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from framelora.cells.store import Cell, Store
from framelora.cells.upkeep import damaged, summary
from framelora.source import REPOSITORY

KIND = "toy/numbers"
PRELUDE = """
import json, os, random, resource, signal, subprocess, sys, time
from pathlib import Path
from framelora.cells.fill import Filling
from framelora.cells.store import Cell, MissingCell, Store, open_store
from framelora.cells.upkeep import collect_garbage, damaged, summary
from framelora.console import UserError

root = Path(sys.argv[1])
store = Store(root / "cells")


def toy(n, unit="unit"):
    return Cell("toy/numbers", unit, {"n": n})


def refusal(n, num_bytes):
    try:
        store.put(toy(n), bytes(num_bytes))
    except UserError as error:
        return str(error)


def report(**facts):
    print(json.dumps({"litter": len(list(root.rglob(".tmp-*"))), "damaged": damaged(store, repair=False)[1], **facts}))
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")  # mounts made inside are seen by nobody else, and end with it


def toy(n: int) -> Cell:
    return Cell(KIND, "unit", {"n": n})


def run(script: str, folder: Path, *before: str) -> tuple[dict[str, Any], str]:
    """Run a script to its end; what it reported, and its stderr."""
    command = [*before, sys.executable, "-c", PRELUDE + script, str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, cwd=folder, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> str:
    """The beginning of a script that mounts a file system of 64 KiB at `root`."""
    mount = ("mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path))
    if shutil.which("unshare") is None:
        pytest.skip("unshare, which gives the test mounts of its own, is not installed")
    if subprocess.run([*OWN_MOUNTS, *mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets the test mount nothing")
    return f"subprocess.run({mount!r}, check=True)\nos.chdir(root)\n"


def test_a_full_disk_refuses_a_cell_in_one_clear_line_and_keeps_the_others(tmp_path: Path, small_disk: str) -> None:
    script = """
store.put(toy(1), b"small")
message = refusal(2, 200_000)
whole = store.read("toy/numbers", toy(1).key)[1].decode()
absent = store.peek("toy/numbers", toy(2).key) is None
store.put(toy(3), b"still fits")
report(message=message, whole=whole, absent=absent, cells=summary(store)["toy/numbers"][0])
"""
    facts, errors = run(small_disk + script, tmp_path, *OWN_MOUNTS)
    assert facts.pop("message") == (
        "the disk of cells is full (writing a toy/numbers cell of 200000 bytes): "
        "free space or set FRAMELORA_CELLS to a larger disk, then run again; finished cells are kept"
    )
    assert facts == {"litter": 0, "damaged": [], "whole": "small", "absent": True, "cells": 2}
    assert errors == ""


def test_a_read_only_disk_serves_whole_cells_and_refuses_the_rest_clearly(tmp_path: Path, small_disk: str) -> None:
    script = """
os.environ["FRAMELORA_CELLS"] = str(store.root)
open_store()
store.put(toy(1), b"whole")
store.put(toy(2), b"to be torn")
os.truncate(store.path("toy/numbers", toy(2).key), 30)
os.utime(store.path("toy/numbers", toy(1).key), (0, 0))
subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
open_store()
whole = store.read("toy/numbers", toy(1).key)[1].decode()
torn = store.peek("toy/numbers", toy(2).key)
filling = Filling(store, "toy")
filling.fill([toy(1)], None)
filling.close()
report(whole=whole, torn=torn, message=refusal(3, 10))
"""
    facts, errors = run(small_disk + script, tmp_path, *OWN_MOUNTS)
    assert (facts["whole"], facts["torn"], facts["litter"]) == ("whole", None, 0)
    assert facts["message"] == (
        "can't write to the cell store cells (Read-only file system): "
        "make it writable, or set FRAMELORA_CELLS to a folder that is"
    )
    assert errors == (
        f"cells: {KIND} {toy(2).key[:12]} is damaged (its header is torn): "
        "not used, but it can't be removed (Read-only file system)\n"
        "toy: the journal of cells can't be written: Read-only file system\n"
    )


def test_a_cell_over_the_limit_on_the_size_of_files_is_refused_clearly(tmp_path: Path) -> None:
    script = """
store.put(toy(1), b"small")
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
message = refusal(2, 20_000)
store.put(toy(3), b"still fits")
report(message=message, cells=summary(store)["toy/numbers"][0])
"""
    facts, _ = run(script, tmp_path)
    assert facts.pop("message").startswith("can't write to the cell store cells (File too large): ")
    assert facts == {"litter": 0, "damaged": [], "cells": 2}


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_writer_killed_before_the_rename_leaves_no_cell_and_hinders_nobody(tmp_path: Path, moment: str) -> None:
    script = f"""
def stop(*args):
    print("here", flush=True)
    time.sleep(60)

store.put(toy(1), b"earlier")
if {moment!r} == "fsync":
    os.fsync = stop
else:
    Path.replace = stop
store.put(toy(2), bytes(100_000))
"""
    command = [sys.executable, "-c", PRELUDE + script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "here\n"
        writer.send_signal(signal.SIGKILL)
    store = Store(tmp_path / "cells")
    (litter,) = store.root.rglob(".tmp-*")
    assert litter.stat().st_size > 100_000
    assert summary(store)[KIND][0] == 1
    assert damaged(store, repair=False) == (1, [])
    assert store.peek(KIND, toy(2).key) is None
    assert store.read(KIND, toy(1).key)[1] == b"earlier"
    store.put(toy(2), b"now whole")
    assert store.read(KIND, toy(2).key)[1] == b"now whole"
    assert litter.exists(), "a young temporary may belong to a writer at work"


def test_a_writer_killed_at_any_moment_leaves_whole_cells_or_none(tmp_path: Path) -> None:
    script = """
rounds, numbers, written = 12, random.Random(7), 0
for number in range(rounds):
    start, end = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.write(end, b"!")
        for n in range(10**9):
            store.put(toy(n % 5), bytes([n % 5]) * 500_000)
    os.read(start, 1)
    time.sleep(numbers.uniform(0, 0.1))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    for n in range(5):
        try:
            stored, payload = store.read("toy/numbers", toy(n).key)
        except MissingCell:
            continue
        assert payload == bytes([n]) * 500_000
        written += 1
    assert damaged(store, repair=False)[1] == []
    for path in store.root.rglob("*.cell"):
        path.unlink()
for n in range(5):
    store.put(toy(n), b"later")
report(written=written, cells=summary(store)["toy/numbers"][0])
"""
    facts, errors = run(script, tmp_path)
    assert errors == "", "no damage may be reported"
    assert facts["written"] > 0, "the writers must have come to something"
    assert facts["cells"] == 5
    assert facts["damaged"] == []


def test_two_writers_of_one_key_and_a_reader_see_only_whole_cells(tmp_path: Path) -> None:
    script = """
payload = random.Random(3).randbytes(200_000)
writers = []
for unit in ("a", "a much longer name of a unit, so that the two files differ in length"):
    writer = os.fork()
    if writer == 0:
        for _ in range(120):
            store.put(toy(1, unit), payload)
        os._exit(0)
    writers.append(writer)
reads = 0
while writers:
    writers = [writer for writer in writers if os.waitpid(writer, os.WNOHANG)[0] == 0]
    header = store.peek("toy/numbers", toy(1).key)
    if header is None:
        assert not reads, "a cell was gone for a moment"
        continue
    assert store.read("toy/numbers", toy(1).key)[1] == payload
    reads += 1
report(reads=reads, files=sum(1 for path in store.root.rglob("*") if path.is_file()))
"""
    facts, errors = run(script, tmp_path)
    assert errors == "", "no damage may be reported"
    assert facts["reads"] > 10
    assert (facts["files"], facts["litter"], facts["damaged"]) == (1, 0, [])


def test_two_processes_that_find_and_mend_the_same_damage_end_with_a_whole_cell(tmp_path: Path) -> None:
    script = """
payload = b"payload" * 1000
for number in range(40):
    store.put(toy(number), payload)
    os.truncate(store.path("toy/numbers", toy(number).key), 1000)
menders = []
for _ in range(2):
    mender = os.fork()
    if mender == 0:
        for number in range(40):
            if store.peek("toy/numbers", toy(number).key) is None:
                store.put(toy(number), payload)
        os._exit(0)
    menders.append(mender)
codes = [os.waitpid(mender, 0)[1] for mender in menders]
report(codes=codes, cells=summary(store)["toy/numbers"][0])
"""
    facts, _ = run(script, tmp_path)
    assert facts == {"litter": 0, "damaged": [], "codes": [0, 0], "cells": 40}


def test_garbage_is_collected_while_others_write(tmp_path: Path) -> None:
    script = """
writer = os.fork()
if writer == 0:
    for n in range(150):
        store.put(toy(n), bytes(1000))
    os._exit(0)
rounds = 0
while os.waitpid(writer, os.WNOHANG)[0] == 0:
    assert collect_garbage(store, days=1, dry_run=False)[0] == 0
    rounds += 1
report(rounds=rounds, cells=summary(store)["toy/numbers"][0])
"""
    facts, errors = run(script, tmp_path)
    assert facts["rounds"] > 0
    assert (facts["cells"], facts["damaged"], errors) == (150, [], "")

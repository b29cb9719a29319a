"""Several processes that train together: gloo on a CPU, started as the stage starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file
from tiny_training import run

from framelora.console import UserError
from framelora.training.checkpoint import STATE, read_files
from framelora.training.processes import only_one, start_processes

SCRIPT = str(REPOSITORY / "tests/tiny_training.py")
WHOLE_BATCH = {"train_batch_size": 4, "adapter": {"dropout": 0.0}}
HALF_BATCHES = {"train_batch_size": 2, "num_processes": 2, "adapter": {"dropout": 0.0}}
# Two processes add their halves of a mean in another order than one process adds the whole.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


def together(state: Path, kill_at: int = -1, **values: object) -> None:
    """Run in two processes; `kill_at` kills the first of them."""
    arguments = [f"{key}={json.dumps(value)}" for key, value in {"kill_at": kill_at, **values}.items()]
    with pytest.MonkeyPatch.context() as patch, only_one(state) as lock:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))
        start_processes([SCRIPT, str(state), *arguments], 2, lock)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a run of two processes."""
    state = tmp_path_factory.mktemp("two") / "state"
    together(state, **HALF_BATCHES)
    return state


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
class TestTwoProcesses:
    def test_with_half_the_batch_they_do_what_one_does_with_the_whole(self, two: Path, tmp_path: Path) -> None:
        run(str(tmp_path / "one"), **WHOLE_BATCH)  # type: ignore[arg-type]
        name = "state/parameters.safetensors"
        one, both = load_file(tmp_path / "one/final" / name), load_file(two / "final" / name)
        assert one.keys() == both.keys()
        for key, value in one.items():
            torch.testing.assert_close(both[key], value, **TOLERANCE)
        rows = [json.loads((state / "final" / STATE).read_bytes())["history"] for state in (tmp_path / "one", two)]
        assert [row["loss"] for row in rows[0][1:]] == pytest.approx([row["loss"] for row in rows[1][1:]], rel=1e-5)
        assert rows[0][0] == rows[1][0]  # the validation loss is shared out, and the same to the last bit

    def test_killed_and_run_again_they_end_in_the_same_bytes(self, two: Path, tmp_path: Path) -> None:
        state = tmp_path / "state"
        with pytest.raises(UserError, match="process 1 of 2 ended with signal SIGKILL"):
            together(state, kill_at=20, **HALF_BATCHES)
        together(state, **HALF_BATCHES)
        assert read_files(state) == read_files(two)


def test_the_lock_is_held_until_the_last_process_that_inherited_it_has_ended(tmp_path: Path) -> None:
    state = tmp_path / "state"
    take = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def free() -> bool:
        return (
            subprocess.run([sys.executable, "-c", take, f"{state}.lock"], capture_output=True, check=False).returncode
            == 0
        )

    with only_one(state) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    assert not free()  # the starter is done, its child is not
    child.communicate(b"\n")
    assert free()


def test_a_failed_process_ends_the_others(tmp_path: Path) -> None:
    code = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(600)"
    with only_one(tmp_path / "state") as lock, pytest.raises(UserError, match="process 2 of 2 ended with exit code 3"):
        start_processes(["-c", code], 2, lock)

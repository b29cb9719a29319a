"""Starting the processes of a run, and the lock that keeps a second run away from its state."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from framelora.console import UserError, warn

POLL_SECONDS = 0.1


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[int]:
    """Hold the lock of a run: a killed `dvc` leaves its child training, and two must not write one state.

    Yields:
        The lock's file descriptor: processes that inherit it hold the lock until the last of them has ended.
    """
    state.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{state}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warn("train: another process trains this very run: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def launched() -> bool:
    """Whether this process is one of several that somebody started together (this module, torchrun, srun)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start_processes(command: list[str], count: int, lock: int) -> None:
    """Run a command in `count` processes of this machine that know of each other, and wait for all.

    Raises:
        UserError: one of them failed; the others are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["OMP_NUM_THREADS"] = max(1, len(os.sched_getaffinity(0)) // count)  # else accelerate guesses, and warns
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **{name: f"{value}" for name, value in {**shared, **ranks(rank)}.items()}},
            pass_fds=[lock],
        )
        for rank in range(count)
    ]
    try:
        codes = [process.poll() for process in running]
        while None in codes and not any(codes):
            time.sleep(POLL_SECONDS)
            codes = [process.poll() for process in running]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            code = running[failed[0]].returncode
            why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise UserError(
                f"process {failed[0] + 1} of {count} ended with {why}: mend what it says above, then run again; "
                "the run goes on from its last checkpoint"
            )
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()


def ranks(rank: int) -> dict[str, int]:
    """A process's place among those of one machine."""
    return {"RANK": rank, "LOCAL_RANK": rank}

"""Plan, fill, gather: what a heavy stage does with its cells."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framelora.cells.overlap import WriteBehind
from framelora.cells.store import Cell, MissingCell, Store, Stored
from framelora.console import UserError, progress, relative, say, warn
from framelora.digest import sha256
from framelora.memory import peak_resident

# What computing a cell yields: that cell, and any other cells that fall out of the same work. A payload may be a call
# that packs it, which is then done where the cell is written.
Payload = bytes | Callable[[], bytes]
Computed = Iterator[tuple[Cell, Payload, Mapping[str, Any]]]


@dataclass(frozen=True)
class Shard:
    """One share of a stage's units: number `index` (from 1) of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`. Raises `UserError` unless 1 <= i <= n."""
        try:
            index, count = (int(part) for part in text.split("/"))
        except ValueError:
            raise UserError(f"--shard {text}: write it as i/n, for example 1/4") from None
        if not 1 <= index <= count:
            raise UserError(f"--shard {text}: i must lie between 1 and n")
        return cls(index, count)

    def owns(self, unit: str) -> bool:
        """Whether a unit is this shard's. It depends on the unit alone, so a new clip dirties one shard."""
        return int(sha256(unit.encode())[:8], 16) % self.count == self.index - 1


class Filling:
    """Fills cells and keeps count, for the summary lines and the journal of one run of a stage."""

    def __init__(self, store: Store, stage: str, shard: Shard | None = None) -> None:
        self.store = store
        self.stage = stage
        self.shard = shard
        self.planned: dict[str, set[str]] = {}
        self.made: set[str] = set()
        self.started = time.monotonic()

    def fill(
        self,
        cells: Sequence[Cell],
        compute: Callable[[Cell], Computed],
        prepare: Callable[[list[Cell]], None] | None = None,
        write_behind: bool = False,
    ) -> None:
        """Compute the missing cells of this shard, one after the other; what is finished is kept whatever comes next.

        Args:
            cells: the planned cells.
            compute: called for each missing cell; yields that cell, and others that fall out of the same work.
            prepare: called once with the missing cells, if there are any, before the first is computed.
            write_behind: write cells while the next is computed. Not for a `compute` that goes on after it has yielded
                and counts on its cells being written.
        """
        mine = [cell for cell in cells if self.shard is None or self.shard.owns(cell.unit)]
        for cell in mine:
            self.planned.setdefault(cell.kind, set()).add(cell.key)
        lacking = {cell.key: cell for cell in mine if self.store.peek(cell.kind, cell.key) is None}
        missing = list(lacking.values())
        if missing and prepare is not None:
            prepare(missing)
        with WriteBehind() as behind:
            for cell in progress(missing, missing[0].kind if missing else "", len(missing)):
                if self.store.peek(cell.kind, cell.key) is not None:  # another process, or an earlier cell's work
                    continue
                for made, payload, meta in compute(cell):
                    write = functools.partial(self.keep, made, payload, meta)
                    behind.put(write) if write_behind else write()

    def keep(self, cell: Cell, payload: Payload, meta: Mapping[str, Any]) -> None:
        """Write a cell and count it."""
        self.store.put(cell, payload if isinstance(payload, bytes) else payload(), meta)
        self.made.add(cell.key)
        self.planned.setdefault(cell.kind, set()).add(cell.key)

    def gather(self, cells: Iterable[Cell]) -> list[Stored]:
        """The headers of filled cells, in the order given.

        Raises:
            UserError: a cell vanished while the stage ran (another process cleans the store).
        """
        stored = [self.store.peek(cell.kind, cell.key) for cell in cells]
        if None in stored:
            raise UserError(f"{self.stage}: cells vanished from {self.store.root} during the run: run it again")
        return [header for header in stored if header is not None]

    def close(self) -> None:
        """Print one line for each kind of cell, and append the same to the store's journal."""
        for kind, keys in sorted(self.planned.items()):
            computed = len(keys & self.made)
            say(f"{kind}: {len(keys)} cells, {computed} computed, {len(keys) - computed} reused")
            record = {
                "stage": self.stage,
                "kind": kind,
                "cells": len(keys),
                "computed": computed,
                "reused": len(keys) - computed,
                "seconds": round(time.monotonic() - self.started, 3),
                "peak_memory_mib": peak_resident() // 2**20,
                "shard": f"{self.shard.index}/{self.shard.count}" if self.shard else None,
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            try:
                with (self.store.root / "journal.jsonl").open("a") as journal:
                    journal.write(json.dumps(record) + "\n")  # one short write in append mode: lines do not mix
            except OSError as error:  # a full or read-only disk; the cells are there all the same
                warn(f"{self.stage}: the journal of {relative(self.store.root)} can't be written: {error.strerror}")


def ensure(store: Store, kind: str, keys: Iterable[str], producer: str) -> None:
    """Check that the cells a stage is about to read are whole, and have the others computed by their producer.

    Args:
        store: the store.
        kind: kind of the cells.
        keys: their keys, as an index names them.
        producer: module of the stage that fills them, for example `stages.encode`; run as a subprocess.

    Raises:
        UserError: the producer failed, or does not make these cells any more (the index is out of date).
    """
    wanted = sorted(set(keys))
    lost = [key for key in progress(wanted, f"checking {kind}", len(wanted)) if not is_whole(store, kind, key)]
    if not lost:
        return
    warn(f"{kind}: {len(lost)} of {len(wanted)} cells are missing: `python -m {producer} --fill` computes them")
    result = subprocess.run([sys.executable, "-m", producer, "--fill"], check=False, env=os.environ.copy())
    if result.returncode:
        raise UserError(f"`python -m {producer} --fill` failed: mend what it says above, then run again")
    still = [key for key in lost if not is_whole(store, kind, key)]
    if still:
        raise UserError(f"{len(still)} {kind} cells belong to an older state of the project: run `dvc repro`")


def is_whole(store: Store, kind: str, key: str) -> bool:
    """Read a whole cell; a damaged one is reported and removed on the way."""
    try:
        store.read(kind, key)
    except MissingCell:
        return False
    return True

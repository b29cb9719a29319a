"""Any sequence of puts, uses, damage, losses and clean-ups: a read gives what was put, or nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from framelora import files
from framelora.cells.store import Cell, MissingCell, open_store
from framelora.cells.upkeep import collect_garbage, damaged, named_cells, summary

KIND = "toy/numbers"
NUMBERS = st.integers(0, 3)
CELLS = [Cell(KIND, f"unit-{n}", {"n": n}) for n in range(4)]
PAYLOADS = [b"", b"one", bytes(300), bytes(range(256)) * 20]
DAY = 24 * 3600
LONG_AGO = 30 * DAY
SCHEMA = pa.schema([("cell", pa.string())])


class CellStore(RuleBasedStateMachine):
    """The model: which cells' files are there, which are as they were written, which were not used lately."""

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        self.folder = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        self.checkout = self.folder / "checkout"
        self.checkout.mkdir()
        self.cleanup.enter_context(mock.patch.dict(os.environ, {"FRAMELORA_CELLS": str(self.folder / "cells")}))
        self.reopen()
        self.whole = []  # the files as `put` writes them
        for n, cell in enumerate(CELLS):
            self.store.put(cell, PAYLOADS[n], {"n": n})
            self.whole.append(self.path(n).read_bytes())
        self.present = set(range(4))
        self.old: set[int] = set()
        self.named: set[int] = set()

    def teardown(self) -> None:
        self.cleanup.close()

    def path(self, n: int) -> Path:
        return self.store.path(KIND, CELLS[n].key)

    def damage(self, n: int) -> str:
        """What is wrong with a cell that is there: nothing, its head (or length), or its payload."""
        data, whole = self.path(n).read_bytes(), self.whole[n]
        if data == whole:
            return ""
        head = len(whole) - len(PAYLOADS[n])
        return "payload" if len(data) == len(whole) and data[:head] == whole[:head] else "head"

    def gone(self, n: int) -> None:
        assert not self.path(n).exists()
        self.present.discard(n)
        self.old.discard(n)

    def overwrite(self, n: int, data: bytes, keep_time: bool) -> None:
        """Change a cell's file in place, as a failing disk does (time kept) or a stray program."""
        before = self.path(n).stat()
        self.path(n).write_bytes(data)
        if keep_time:
            os.utime(self.path(n), ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            self.old.discard(n)

    @rule()
    def reopen(self) -> None:
        with contextlib.chdir(self.checkout):
            self.store = open_store()

    @rule(n=NUMBERS)
    def put(self, n: int) -> None:
        self.store.put(CELLS[n], PAYLOADS[n], {"n": n})
        self.present.add(n)
        self.old.discard(n)

    @rule(n=NUMBERS)
    def read(self, n: int) -> None:
        if n in self.present and not self.damage(n):
            stored, payload = self.store.read(KIND, CELLS[n].key)
            assert payload == PAYLOADS[n]
            assert (stored.unit, stored.meta) == (f"unit-{n}", {"n": n})
            self.old.discard(n)
        else:
            with pytest.raises(MissingCell):
                self.store.read(KIND, CELLS[n].key)
            self.gone(n)

    @rule(n=NUMBERS)
    def peek(self, n: int) -> None:
        sound = n in self.present and self.damage(n) != "head"
        stored = self.store.peek(KIND, CELLS[n].key)
        if sound:
            assert stored is not None
            assert (stored.key, stored.num_bytes, stored.meta) == (CELLS[n].key, len(PAYLOADS[n]), {"n": n})
            self.old.discard(n)
        else:
            assert stored is None
            self.gone(n)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), keep_time=st.booleans(), mask=st.integers(1, 255), from_end=st.booleans())
    def flip(self, data: st.DataObject, keep_time: bool, mask: int, from_end: bool) -> None:
        n = data.draw(st.sampled_from(sorted(self.present)))
        changed = bytearray(self.path(n).read_bytes())
        if changed:
            position = data.draw(st.integers(0, len(changed) - 1))  # mostly a small number: the head, or the payload
            changed[-1 - position if from_end else position] ^= mask
            self.overwrite(n, bytes(changed), keep_time)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), keep_time=st.booleans())
    def truncate(self, data: st.DataObject, keep_time: bool) -> None:
        n = data.draw(st.sampled_from(sorted(self.present)))
        length = data.draw(st.integers(0, self.path(n).stat().st_size))
        self.overwrite(n, self.path(n).read_bytes()[:length], keep_time)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), garbage=st.binary(min_size=1, max_size=40), keep_time=st.booleans())
    def append(self, data: st.DataObject, garbage: bytes, keep_time: bool) -> None:
        n = data.draw(st.sampled_from(sorted(self.present)))
        self.overwrite(n, self.path(n).read_bytes() + garbage, keep_time)

    @precondition(lambda self: self.present)
    @rule(data=st.data(), to=NUMBERS)
    def copy_under_another_key(self, data: st.DataObject, to: int) -> None:
        n = data.draw(st.sampled_from(sorted(self.present)))
        content = self.path(n).read_bytes()
        self.path(to).unlink(missing_ok=True)
        self.path(to).write_bytes(content)
        self.present.add(to)
        self.old.discard(to)

    @rule(n=NUMBERS)
    def delete(self, n: int) -> None:
        self.path(n).unlink(missing_ok=True)
        self.gone(n)

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def let_time_pass(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(sorted(self.present)))
        os.utime(self.path(n), (time.time() - LONG_AGO,) * 2)
        self.old.add(n)

    @rule(in_table=st.sets(NUMBERS), in_json=NUMBERS | st.none())
    def write_indexes(self, in_table: set[int], in_json: int | None) -> None:
        rows = [{"cell": CELLS[n].key} for n in sorted(in_table)]
        files.write_table(self.checkout / "data/frames.parquet", rows, SCHEMA)
        value = {} if in_json is None else {"cell": CELLS[in_json].key}
        files.write_json(self.checkout / "models/adapter/lineage.json", value)
        self.named = in_table | (set() if in_json is None else {in_json})
        assert named_cells(self.checkout) == {CELLS[n].key for n in self.named}

    @rule(dry_run=st.booleans(), keep_all=st.booleans())
    def collect_garbage(self, dry_run: bool, keep_all: bool) -> None:
        unneeded = set() if keep_all else (self.present & self.old) - self.named
        days = (2 if keep_all else 0.5) * LONG_AGO / DAY
        num_bytes = sum(self.path(n).stat().st_size for n in unneeded)
        assert collect_garbage(self.store, days=days, dry_run=dry_run) == (len(unneeded), num_bytes, [self.checkout])
        for n in set() if dry_run else unneeded:
            self.gone(n)

    @rule(repair=st.booleans())
    def verify(self, repair: bool) -> None:
        broken = {n for n in self.present if self.damage(n)}
        checked, lines = damaged(self.store, repair=repair)
        assert (checked, len(lines)) == (len(self.present), len(broken))
        for n in broken if repair else ():
            self.gone(n)

    @rule(n=NUMBERS)
    def leave_a_temporary_as_a_killed_writer_does(self, n: int) -> None:
        self.path(n).with_name(".tmp-1-0123abcd").write_bytes(self.whole[n][:50])

    @invariant()
    def the_summary_counts_the_files_that_are_there(self) -> None:
        sizes = [self.path(n).stat().st_size for n in self.present]
        assert summary(self.store) == ({KIND: (len(sizes), sum(sizes))} if sizes else {})


CellStore.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestCellStore = CellStore.TestCase

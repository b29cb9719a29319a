"""Shards, fill and gather, and a stage that has its missing cells made by their producer."""

from __future__ import annotations

import functools
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framelora.cells.fill import Computed, Filling, Shard, ensure
from framelora.cells.overlap import ReadAhead
from framelora.cells.store import Cell, MissingCell, Store
from framelora.console import UserError
from framelora.source import REPOSITORY

KIND = "toy/squares"


def toy(n: int) -> Cell:
    return Cell(KIND, f"unit-{n}", {"n": n})


class Toy:
    """A stage's work: squares. Notes what it was asked to do."""

    def __init__(self) -> None:
        self.prepared: list[list[int]] = []
        self.computed: list[int] = []
        self.fails_at: int | None = None

    def prepare(self, missing: list[Cell]) -> None:
        assert self.computed == []
        self.prepared.append([cell.inputs["n"] for cell in missing])

    def compute(self, cell: Cell) -> Computed:
        n = cell.inputs["n"]
        if n == self.fails_at:
            raise RuntimeError("the decoder gave up")
        self.computed.append(n)
        yield cell, str(n * n).encode(), {"n": n}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cells")


@pytest.fixture
def work() -> Toy:
    return Toy()


def journal(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.root / "journal.jsonl").read_text().splitlines()]


# Shards


@given(st.sets(st.text(), max_size=30), st.integers(1, 9))
def test_every_unit_belongs_to_exactly_one_shard(units: set[str], count: int) -> None:
    shards = [Shard(index, count) for index in range(1, count + 1)]
    for unit in units:
        assert [shard.owns(unit) for shard in shards].count(True) == 1


def test_shards_share_the_work_about_evenly() -> None:
    units = [f"unit-{n}" for n in range(1000)]
    for index in range(1, 5):
        assert 200 < sum(Shard(index, 4).owns(unit) for unit in units) < 300


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_shard_is_read_from_what_a_person_types(index: int, count: int) -> None:
    if index <= count:
        assert Shard.parse(f"{index}/{count}") == Shard(index, count)
    else:
        with pytest.raises(UserError, match="i must lie between 1 and n"):
            Shard.parse(f"{index}/{count}")


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "a/b", "1/2/3", "1.0/2", "1 of 2"])
def test_what_is_no_shard_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=rf"--shard {re.escape(text)}: write it as i/n, for example 1/4"):
        Shard.parse(text)


@pytest.mark.parametrize("text", ["0/4", "5/4", "-1/4", "0/0", "1/0", "-2/-1"])
def test_a_shard_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"i must lie between 1 and n"):
        Shard.parse(text)


def test_the_shards_fill_disjoint_shares_that_make_up_the_whole(store: Store) -> None:
    cells = [toy(n) for n in range(40)]
    shares = []
    for index in range(1, 4):
        work = Toy()
        Filling(store, "toy", Shard(index, 3)).fill(cells, work.compute, work.prepare)
        shares.append(work.computed)
        assert work.prepared == [work.computed]
        assert work.computed == [n for n in range(40) if Shard(index, 3).owns(f"unit-{n}")]
    assert all(shares)
    assert sorted(n for share in shares for n in share) == list(range(40))
    assert len(Filling(store, "toy").gather(cells)) == 40


# Fill


def test_only_missing_cells_are_computed_and_prepare_is_called_once_with_them(store: Store, work: Toy) -> None:
    for n in (1, 3):
        store.put(toy(n), b"earlier")
    cells = [toy(n) for n in range(5)]
    Filling(store, "toy").fill(cells, work.compute, work.prepare)
    assert work.prepared == [[0, 2, 4]]
    assert work.computed == [0, 2, 4]
    assert store.read(KIND, toy(1).key)[1] == b"earlier"
    assert store.read(KIND, toy(4).key)[1] == b"16"


def test_nothing_missing_means_nothing_is_prepared_or_computed(store: Store, work: Toy) -> None:
    store.put(toy(1), b"1")
    Filling(store, "toy").fill([toy(1)], work.compute, work.prepare)
    Filling(store, "toy").fill([], work.compute, work.prepare)
    assert (work.prepared, work.computed) == ([], [])


def test_a_cell_planned_twice_is_computed_and_counted_once(
    store: Store, work: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    filling = Filling(store, "toy")
    same = Cell(KIND, "the same content under another name", {"n": 1})
    filling.fill([toy(1), same], work.compute)
    filling.close()
    assert work.computed == [1]
    assert capsys.readouterr().out == "toy/squares: 1 cells, 1 computed, 0 reused\n"


def test_a_cell_that_another_process_finished_meanwhile_is_not_computed(store: Store, work: Toy) -> None:
    def compute(cell: Cell) -> Computed:
        store.put(toy(1), b"by another process")
        yield from work.compute(cell)

    Filling(store, "toy").fill([toy(0), toy(1), toy(2)], compute)
    assert work.computed == [0, 2]
    assert store.read(KIND, toy(1).key)[1] == b"by another process"


def test_a_cell_with_a_damaged_head_is_computed_again(
    store: Store, work: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put(toy(1), b"1")
    os.truncate(store.path(KIND, toy(1).key), 100)
    Filling(store, "toy").fill([toy(1)], work.compute)
    assert work.computed == [1]
    assert "is damaged" in capsys.readouterr().err


def test_an_error_in_the_middle_keeps_what_is_finished_and_a_second_run_does_the_rest(store: Store, work: Toy) -> None:
    cells = [toy(n) for n in range(6)]
    work.fails_at = 3
    with pytest.raises(RuntimeError, match="the decoder gave up"):
        Filling(store, "toy").fill(cells, work.compute)
    again = Toy()
    Filling(store, "toy").fill(cells, again.compute, again.prepare)
    assert work.computed == [0, 1, 2]
    assert again.computed == [3, 4, 5]
    assert again.prepared == [[3, 4, 5]]


def test_an_error_between_the_cells_of_one_unit_keeps_the_first(store: Store) -> None:
    def compute(cell: Cell) -> Computed:
        yield cell, b"first", {}
        raise RuntimeError("the decoder gave up")

    with pytest.raises(RuntimeError, match="the decoder gave up"):
        Filling(store, "toy").fill([toy(1)], compute)
    assert store.read(KIND, toy(1).key)[1] == b"first"


def test_an_interrupt_keeps_what_is_finished(store: Store, work: Toy) -> None:
    def compute(cell: Cell) -> Computed:
        if cell == toy(2):
            raise KeyboardInterrupt
        yield from work.compute(cell)

    with pytest.raises(KeyboardInterrupt):
        Filling(store, "toy").fill([toy(n) for n in range(4)], compute)
    assert [store.peek(KIND, toy(n).key) is not None for n in range(4)] == [True, True, False, False]


def test_cells_that_fall_out_of_the_same_work_are_stored_and_counted(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def compute(cell: Cell) -> Iterator[tuple[Cell, bytes, Mapping[str, Any]]]:
        yield cell, b"a shot's list", {}
        for part in range(2):
            yield Cell("toy/parts", cell.unit, {**cell.inputs, "part": part}), b"part", {"part": part}

    filling = Filling(store, "toy")
    filling.fill([toy(1), toy(2)], compute)
    filling.close()
    assert store.read("toy/parts", Cell("toy/parts", "", {"n": 2, "part": 1}).key)[0].meta == {"part": 1}
    assert capsys.readouterr().out == (
        "toy/parts: 4 cells, 4 computed, 0 reused\ntoy/squares: 2 cells, 2 computed, 0 reused\n"
    )


# Gather


class TestWritingBehind:
    def test_a_cell_is_written_while_the_next_is_computed(
        self, store: Store, work: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computing, put = threading.Event(), Store.put

        def slow(self: Store, cell: Cell, *rest: Any) -> Any:
            assert cell.inputs["n"] > 0 or computing.wait(30), "the next was not begun"
            return put(self, cell, *rest)

        def compute(cell: Cell) -> Computed:
            if cell.inputs["n"] == 1:
                computing.set()
            return work.compute(cell)

        monkeypatch.setattr(Store, "put", slow)
        filling = Filling(store, "toy")
        filling.fill([toy(n) for n in range(4)], compute, write_behind=True)
        assert [header.meta["n"] for header in filling.gather(toy(n) for n in range(4))] == [0, 1, 2, 3]

    def test_bytes_and_counts_are_those_of_writing_at_once(self, tmp_path: Path, work: Toy) -> None:
        found = []
        for name, behind in (("at once", False), ("behind", True)):
            filling = Filling(Store(tmp_path / name), "toy")
            filling.fill([toy(n) for n in (0, 1, 1, 2)], work.compute, write_behind=behind)
            paths = sorted((tmp_path / name).rglob("*.cell"))
            found.append(([path.read_bytes() for path in paths], filling.made, filling.planned))
        assert found[0] == found[1]
        assert work.computed == [0, 1, 2, 0, 1, 2]

    def test_a_payload_is_packed_where_it_is_written(self, store: Store) -> None:
        packed: list[str] = []

        def pack(n: int) -> bytes:
            packed.append(threading.current_thread().name)
            return bytes([n])

        def compute(cell: Cell) -> Computed:
            yield cell, functools.partial(pack, cell.inputs["n"]), {}

        filling = Filling(store, "toy")
        filling.fill([toy(0)], compute)
        filling.fill([toy(n) for n in range(3)], compute, write_behind=True)
        assert [store.read(KIND, toy(n).key)[1] for n in range(3)] == [b"\0", b"\1", b"\2"]
        assert packed[0] == threading.current_thread().name
        assert len(packed) == 3 and all(name.startswith("write-behind") for name in packed[1:])

    def test_an_error_in_the_middle_keeps_what_is_finished(self, store: Store, work: Toy) -> None:
        work.fails_at = 3
        with pytest.raises(RuntimeError, match="gave up"):
            Filling(store, "toy").fill([toy(n) for n in range(5)], work.compute, write_behind=True)
        assert [n for n in range(5) if store.peek(KIND, toy(n).key)] == [0, 1, 2]

    @pytest.mark.parametrize("bad", [0, 4])
    def test_a_write_that_fails_stops_the_stage(
        self, store: Store, work: Toy, bad: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = Store.put

        def full(self: Store, cell: Cell, *rest: Any) -> Any:
            if cell.inputs["n"] == bad:
                raise UserError("the disk is full")
            return put(self, cell, *rest)

        monkeypatch.setattr(Store, "put", full)
        with pytest.raises(UserError, match="full"):
            Filling(store, "toy").fill([toy(n) for n in range(5)], work.compute, write_behind=True)


class TestReadingAhead:
    def test_the_next_is_loaded_while_one_is_in_use_and_each_once(self) -> None:
        loaded: dict[str, threading.Event] = {name: threading.Event() for name in "abc"}
        order: list[str] = []

        def load(name: str) -> str:
            order.append(name)
            loaded[name].set()
            return name.upper()

        ahead = ReadAhead(load, ["a", "a", "b", "c"])
        assert ahead.get("a") == "A"
        assert loaded["b"].wait(30)
        assert not loaded["c"].is_set()
        assert [ahead.get(name) for name in ("a", "b", "b", "c")] == ["A", "B", "B", "C"]
        assert order == ["a", "b", "c"]

    def test_what_another_process_has_done_may_be_left_out(self) -> None:
        ahead = ReadAhead(str.upper, ["a", "b", "c", "d"])
        assert [ahead.get(name) for name in ("a", "d")] == ["A", "D"]

    def test_an_error_comes_when_the_thing_is_asked_for(self) -> None:
        ahead = ReadAhead(lambda name: 1 // (ord(name) - ord("b")), ["a", "b"])
        assert ahead.get("a") == -1
        with pytest.raises(ZeroDivisionError):
            ahead.get("b")


def test_gather_gives_the_headers_in_the_order_asked_for(store: Store, work: Toy) -> None:
    cells = [toy(n) for n in (3, 1, 2)]
    filling = Filling(store, "toy")
    filling.fill(cells, work.compute)
    assert [stored.key for stored in filling.gather(cells)] == [cell.key for cell in cells]
    assert [stored.meta for stored in filling.gather(reversed(cells))] == [{"n": 2}, {"n": 1}, {"n": 3}]


@pytest.mark.parametrize("loss", ["deleted", "torn"])
def test_gather_refuses_when_a_cell_vanished_during_the_run(store: Store, work: Toy, loss: str) -> None:
    filling = Filling(store, "toy")
    filling.fill([toy(1), toy(2)], work.compute)
    if loss == "deleted":
        store.path(KIND, toy(1).key).unlink()
    else:
        os.truncate(store.path(KIND, toy(1).key), 50)
    with pytest.raises(UserError, match=r"toy: cells vanished from .*cells during the run: run it again"):
        filling.gather([toy(1), toy(2)])


# The summary and the journal


def test_the_summary_counts_each_kind_and_the_journal_says_the_same(
    store: Store, work: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put(toy(0), b"0")
    store.put(Cell("toy/others", "u", {}), b"")
    filling = Filling(store, "toy")
    filling.fill([toy(n) for n in range(3)], work.compute)
    filling.fill([Cell("toy/others", "u", {})], work.compute)
    filling.close()
    printed = capsys.readouterr()
    assert printed.out == "toy/others: 1 cells, 0 computed, 1 reused\ntoy/squares: 3 cells, 2 computed, 1 reused\n"
    assert printed.err == ""
    others, squares = journal(store)
    assert (others["kind"], others["cells"], others["computed"], others["reused"]) == ("toy/others", 1, 0, 1)
    assert (squares["kind"], squares["cells"], squares["computed"], squares["reused"]) == (KIND, 3, 2, 1)
    assert squares["stage"] == "toy"
    assert squares["shard"] is None
    assert squares["seconds"] >= 0
    assert squares["peak_memory_mib"] > 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", squares["at"])


def test_the_journal_is_appended_to_and_names_the_shard(store: Store) -> None:
    for index in (1, 2):
        filling = Filling(store, "toy", Shard(index, 2))
        filling.fill([toy(n) for n in range(10)], Toy().compute)
        filling.close()
    assert [record["shard"] for record in journal(store)] == ["1/2", "2/2"]
    assert sum(record["computed"] for record in journal(store)) == 10


def test_a_journal_that_cannot_be_written_does_not_fail_a_finished_stage(
    store: Store, work: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    filling = Filling(store, "toy")
    filling.fill([toy(1)], work.compute)
    (store.root / "journal.jsonl").mkdir()
    filling.close()
    printed = capsys.readouterr()
    assert printed.out == "toy/squares: 1 cells, 1 computed, 0 reused\n"
    assert "toy: the journal of " in printed.err


# Ensure

PRODUCER = """
import sys
from pathlib import Path
from framelora.cells.fill import Filling
from framelora.cells.overlap import ReadAhead
from framelora.cells.store import Cell, open_store

assert sys.argv[1:] == ["--fill"]


def compute(cell):
    with Path("computed.txt").open("a") as log:
        log.write(f"{cell.inputs['n']}\\n")
    yield cell, str(cell.inputs["n"] ** 2).encode(), {}


filling = Filling(open_store(), "toy")
filling.fill([Cell("toy/squares", f"unit-{n}", {"n": n}) for n in range(4)], compute)
filling.close()
"""
FAILING = "raise SystemExit(3)\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a producer of four cells, which have been made."""
    (tmp_path / "producer.py").write_text(PRODUCER)
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMELORA_CELLS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for n in range(4):
        Store(tmp_path / ".cells").put(toy(n), str(n * n).encode())
    return tmp_path


def computed(checkout: Path) -> list[int]:
    log = checkout / "computed.txt"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


KEYS = [toy(n).key for n in range(4)]


def test_whole_cells_are_read_without_their_producer(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ensure(Store(checkout / ".cells"), KIND, KEYS, "failing")
    ensure(Store(checkout / ".cells"), KIND, [], "failing")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_deleted_and_flipped_cells_are_made_again_and_no_others(
    checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store(checkout / ".cells")
    store.path(KIND, KEYS[1]).unlink()
    flipped = store.path(KIND, KEYS[3])
    times = flipped.stat()
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"8")  # the payload, with length and time kept
    os.utime(flipped, ns=(times.st_atime_ns, times.st_mtime_ns))
    ensure(store, KIND, [*KEYS, *KEYS], "producer")
    assert computed(checkout) == [1, 3]
    assert [store.read(KIND, key)[1] for key in KEYS] == [b"0", b"1", b"4", b"9"]
    printed = capfd.readouterr()
    assert "toy/squares: 2 of 4 cells are missing: `python -m producer --fill` computes them\n" in printed.err
    assert f"cells: toy/squares {KEYS[3][:12]} is damaged (its bytes differ from their digest)" in printed.err
    assert printed.out == "toy/squares: 4 cells, 2 computed, 2 reused\n"


def test_a_deleted_store_is_filled_again(checkout: Path) -> None:
    store = Store(checkout / ".cells")
    for path in store.root.rglob("*.cell"):
        path.unlink()
    ensure(store, KIND, KEYS, "producer")
    assert computed(checkout) == [0, 1, 2, 3]


@pytest.mark.parametrize("producer", ["failing", "no_such_module"])
def test_a_producer_that_fails_is_a_clear_error(checkout: Path, producer: str) -> None:
    store = Store(checkout / ".cells")
    store.path(KIND, KEYS[1]).unlink()
    with pytest.raises(UserError, match=rf"`python -m {producer} --fill` failed: mend what it says above"):
        ensure(store, KIND, KEYS, producer)
    with pytest.raises(MissingCell):
        store.read(KIND, KEYS[1])


def test_cells_that_the_producer_does_not_make_any_more_are_a_clear_error(checkout: Path) -> None:
    with pytest.raises(
        UserError, match=r"1 toy/squares cells belong to an older state of the project: run `dvc repro`"
    ):
        ensure(Store(checkout / ".cells"), KIND, [*KEYS, toy(99).key], "producer")

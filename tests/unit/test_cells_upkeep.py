"""Looking after a store that several checkouts share: summary, verify, garbage collection."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import unprivileged

from framelora import files
from framelora.cells.store import Cell, Store, open_store
from framelora.cells.upkeep import collect_garbage, damaged, named_cells, summary
from framelora.console import UserError

KIND = "toy/numbers"
DAY = 24 * 3600
SCHEMA = pa.schema([("content_id", pa.string()), ("cell", pa.string())])


def toy(n: int, kind: str = KIND) -> Cell:
    return Cell(kind, f"unit-{n}", {"n": n})


def put(store: Store, n: int, *, days_old: float = 0.0, kind: str = KIND) -> Path:
    """A cell last used so many days ago."""
    store.put(toy(n, kind), b"payload")
    path = store.path(kind, toy(n, kind).key)
    os.utime(path, (time.time() - days_old * DAY,) * 2)
    return path


def write_index(path: Path, *numbers: int) -> None:
    files.write_table(path, [{"content_id": "a", "cell": toy(n).key} for n in numbers], SCHEMA)


def remaining(store: Store) -> list[int]:
    return [n for n in range(20) if store.path(KIND, toy(n).key).exists()]


@pytest.fixture
def checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two checkouts that share a store, both registered."""
    monkeypatch.setenv("FRAMELORA_CELLS", str(tmp_path / "shared"))
    pair = tmp_path / "one", tmp_path / "two"
    for checkout in reversed(pair):
        checkout.mkdir()
        monkeypatch.chdir(checkout)
        open_store()
    return pair


@pytest.fixture
def store(tmp_path: Path, checkouts: tuple[Path, Path]) -> Store:
    return Store(tmp_path / "shared")


def test_a_summary_counts_cells_and_bytes_by_kind_and_nothing_else(store: Store) -> None:
    sizes = [put(store, n).stat().st_size for n in range(3)]
    other = put(store, 0, kind="other/kind").stat().st_size
    (store.root / KIND / ".tmp-1-abc").write_bytes(b"a writer's")
    (store.root / "journal.jsonl").write_text("{}\n")
    assert summary(store) == {"other/kind": (1, other), KIND: (3, sum(sizes))}
    assert summary(Store(store.root / "nowhere")) == {}


# Verify


def test_verify_names_the_damaged_cells_and_leaves_them(store: Store) -> None:
    for n in range(4):
        put(store, n)
    store.path(KIND, toy(1).key).write_bytes(b"torn")
    flipped = store.path(KIND, toy(2).key)
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    checked, broken = damaged(store, repair=False)
    assert checked == 4
    assert sorted(broken) == sorted(
        [
            f"{KIND} {toy(1).key[:12]}: it does not begin as a cell",
            f"{KIND} {toy(2).key[:12]}: its bytes differ from their digest",
        ]
    )
    assert remaining(store) == [0, 1, 2, 3]


def test_verify_with_repair_removes_the_damaged_cells_alone(store: Store) -> None:
    for n in range(4):
        put(store, n)
    store.path(KIND, toy(1).key).write_bytes(b"torn")
    assert len(damaged(store, repair=True)[1]) == 1
    assert remaining(store) == [0, 2, 3]
    assert damaged(store, repair=True) == (3, [])


def test_verify_is_no_use_of_a_cell(store: Store) -> None:
    put(store, 1, days_old=30)
    damaged(store, repair=True)
    assert collect_garbage(store, days=10, dry_run=False)[0] == 1


# What indexes name


def test_tables_and_json_files_of_the_index_folders_name_cells(tmp_path: Path) -> None:
    write_index(tmp_path / "data/frames.parquet", 1, 2)
    write_index(tmp_path / "data/deep/er/frames.parquet", 3)
    write_index(tmp_path / "reports/render/index.parquet", 4)
    write_index(tmp_path / "somewhere/else.parquet", 5)
    files.write_json(tmp_path / "models/adapter/lineage.json", {"cell": toy(6).key, "step": 3})
    files.write_json(tmp_path / "reports/metrics.json", {"loss": 1.0})
    assert named_cells(tmp_path) == {toy(n).key for n in (1, 2, 3, 4, 6)}
    assert named_cells(tmp_path / "empty") == set()


def test_files_that_are_no_indexes_name_no_cells(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_index(data / "good.parquet", 1)
    whole = (data / "good.parquet").read_bytes()
    (data / "torn.parquet").write_bytes(whole[: len(whole) // 2])
    (data / "empty.parquet").touch()
    (data / "folder.parquet").mkdir()
    (data / "dangling.parquet").symlink_to("nowhere")
    files.write_table(data / "other.parquet", [{"x": 1}], pa.schema([("x", pa.int64())]))
    (data / "empty.json").touch()
    (data / "latin.json").write_bytes(b'{"cell": "\xe9"}')
    for number, text in enumerate(["[1, 2]", '"cell"', "3", "{", '{"cell": 3}', '{"cell": null}', '{"cell": ["a"]}']):
        (data / f"{number}.json").write_text(text)
    assert named_cells(tmp_path) == {toy(1).key}


def test_an_index_with_changed_bytes_is_passed_over_or_read_and_never_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "data/frames.parquet"
    write_index(path, 1)
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        path.write_bytes(changed)
        named_cells(tmp_path)


# Garbage


def test_what_either_checkout_names_is_kept_and_what_nobody_names_is_dropped(
    store: Store, checkouts: tuple[Path, Path]
) -> None:
    one, two = checkouts
    sizes = {n: put(store, n, days_old=30).stat().st_size for n in range(6)}
    put(store, 6, days_old=1)
    write_index(one / "data/frames.parquet", 0, 1)
    write_index(two / "data/latents_train.parquet", 1, 2)
    files.write_json(two / "models/adapter/lineage.json", {"cell": toy(3).key})
    would = collect_garbage(store, days=14, dry_run=True)
    assert remaining(store) == [0, 1, 2, 3, 4, 5, 6], "a dry run deletes nothing"
    did = collect_garbage(store, days=14, dry_run=False)
    assert remaining(store) == [0, 1, 2, 3, 6]
    assert would == did
    assert did[:2] == (2, sizes[4] + sizes[5])
    assert set(did[2]) == {one, two}
    assert collect_garbage(store, days=14, dry_run=False)[0] == 0
    assert collect_garbage(store, days=0, dry_run=False)[0] == 1


@pytest.mark.parametrize("use", ["peek", "read"])
def test_a_cell_in_use_is_kept_though_no_index_names_it(store: Store, use: str) -> None:
    put(store, 1, days_old=30)
    getattr(store, use)(KIND, toy(1).key)
    assert collect_garbage(store, days=14, dry_run=False)[0] == 0
    assert remaining(store) == [1]


def test_a_vanished_checkout_is_forgotten_and_a_dry_run_forgets_nothing(
    store: Store, checkouts: tuple[Path, Path]
) -> None:
    one, two = checkouts
    put(store, 1, days_old=30)
    put(store, 2, days_old=30)
    write_index(one / "data/frames.parquet", 1)
    two.rmdir()
    for dry_run in (True, False):
        assert len(list((store.root / "checkouts").iterdir())) == 2
        assert collect_garbage(store, days=14, dry_run=dry_run)[2] == [one]
    (note,) = (store.root / "checkouts").iterdir()
    assert json.loads(note.read_text()) == {"path": str(one)}
    assert remaining(store) == [1]


def test_stale_temporaries_go_and_young_ones_stay(store: Store) -> None:
    put(store, 1)
    folder = store.root / KIND / "ab"
    folder.mkdir(exist_ok=True)
    stale, young = folder / ".tmp-1-stale", folder / ".tmp-2-young"
    for path, age in ((stale, 1.1 * DAY), (young, 0.9 * DAY)):
        path.write_bytes(b"part of a cell")
        os.utime(path, (time.time() - age,) * 2)
    collect_garbage(store, days=0, dry_run=True)
    assert stale.exists()
    collect_garbage(store, days=30, dry_run=False)
    assert (stale.exists(), young.exists()) == (False, True)


def test_a_temporary_renamed_while_garbage_is_collected_is_no_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = store.root / ".tmp-1-abc"
    temporary.touch()
    walk = Path.rglob

    def rglob(self: Path, pattern: str) -> list[Path]:
        found = list(walk(self, pattern))
        if pattern == ".tmp-*":
            temporary.rename(store.root / "renamed")
        return found

    monkeypatch.setattr(Path, "rglob", rglob)
    collect_garbage(store, days=0, dry_run=False)
    assert (store.root / "renamed").exists()


@pytest.mark.parametrize("closed", [".", "data", "data/frames.parquet", "models/adapter/lineage.json"])
def test_nothing_is_dropped_while_a_registered_checkout_cannot_be_read(
    closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users as a whole
        private = Path(name) / "private"
        write_index(private / "data/frames.parquet", 1)
        files.write_json(private / "models/adapter/lineage.json", {"cell": toy(1).key})
        monkeypatch.setenv("FRAMELORA_CELLS", str(Path(name) / "shared"))
        monkeypatch.chdir(private)
        store = open_store()
        put(store, 1, days_old=30)
        for path in [Path(name), *Path(name).rglob("*")]:
            path.chmod(0o777)
        monkeypatch.chdir(name)
        (private / closed).chmod(0)
        with (
            unprivileged(),
            pytest.raises(UserError, match=r"can't read .*private.* \(Permission denied\).*nothing was dropped"),
        ):
            collect_garbage(store, days=0, dry_run=False)
        (private / closed).chmod(0o777)
        assert remaining(store) == [1]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"path": 3}', "\x00"])
def test_nothing_is_dropped_while_a_note_of_a_checkout_is_damaged(store: Store, text: str) -> None:
    put(store, 1, days_old=30)
    note = sorted((store.root / "checkouts").iterdir())[0]
    note.write_text(text)
    with pytest.raises(UserError, match=rf"checkouts/{note.name} is damaged.*nothing was dropped"):
        collect_garbage(store, days=0, dry_run=False)
    assert remaining(store) == [1]
    assert note.exists()

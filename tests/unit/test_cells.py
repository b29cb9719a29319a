"""The cell store: keys, round trips, every kind of damage, and where a store lies."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import unprivileged
from hypothesis import given, settings
from hypothesis import strategies as st

from framelora import files
from framelora.cells.store import MAGIC, Cell, MissingCell, Store, open_store, repository_root
from framelora.console import UserError
from framelora.digest import canonical_json

KIND = "toy/numbers"
PAYLOAD = b"payload of a cell"
DAYS = 24 * 3600


def toy(n: int = 0) -> Cell:
    return Cell(KIND, f"unit-{n}", {"n": n})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cells")


@pytest.fixture
def path(store: Store) -> Path:
    """The file of one small whole cell."""
    store.put(toy(), PAYLOAD, {"shape": [1, 2]})
    return store.path(KIND, toy().key)


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


# Keys


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
inputs = st.dictionaries(st.text(), json_values, min_size=1, max_size=4)


def reordered(value: Any) -> Any:
    """The same JSON value with its objects' members in the opposite order."""
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=50, deadline=None)
@given(inputs, st.text(), st.text())
def test_a_key_depends_neither_on_the_unit_nor_on_the_order_of_inputs(
    values: dict[str, Any], unit: str, other: str
) -> None:
    assert Cell(KIND, unit, values).key == Cell(KIND, other, reordered(values)).key


@settings(max_examples=50, deadline=None)
@given(inputs, inputs)
def test_different_inputs_give_different_keys(one: dict[str, Any], two: dict[str, Any]) -> None:
    same = canonical_json(one) == canonical_json(two)
    assert (Cell(KIND, "u", one).key == Cell(KIND, "u", two).key) is same


@settings(max_examples=50, deadline=None)
@given(inputs, st.data())
def test_a_key_depends_on_every_input(values: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(values)))
    changed = data.draw(json_values.filter(lambda value: canonical_json(value) != canonical_json(values[name])))
    key = Cell(KIND, "u", values).key
    assert Cell(KIND, "u", {**values, name: changed}).key != key
    assert Cell(KIND, "u", {other: values[other] for other in values if other != name}).key != key


@pytest.mark.parametrize(
    ("one", "two"),
    [(1, 1.0), (1, True), (0, False), (0, None), (0.0, -0.0), ("1", 1), ("", None), ([], {}), ([1, 2], [2, 1])],
)
def test_values_that_python_or_a_reader_may_confuse_give_different_keys(one: object, two: object) -> None:
    assert Cell(KIND, "u", {"x": one}).key != Cell(KIND, "u", {"x": two}).key


def test_a_key_depends_on_the_kind_and_is_a_sha256() -> None:
    key = Cell("encode/latents", "u", {}).key
    assert key != Cell("encode/images", "u", {}).key
    assert len(key) == 64
    assert set(key) <= set("0123456789abcdef")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_in_inputs_and_in_meta(store: Store, value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        _ = Cell(KIND, "u", {"deep": [{"x": value}]}).key
    with pytest.raises(ValueError, match="JSON compliant"):
        store.put(toy(), b"", {"x": value})
    assert not store.root.exists()


# Round trips


@pytest.mark.parametrize(
    "payload",
    [b"", b"\n", b"framelora cell 1\n", random.Random(0).randbytes(3_000_000)],
    ids=["empty", "newline", "header", "random"],
)
def test_what_was_put_is_read_back(store: Store, payload: bytes) -> None:
    meta = {"shape": [2, 3], "name": "größe \u2028 \U0001f3ac", "nested": {"none": None, "float": 0.1}}
    put = store.put(toy(), payload, meta)
    stored, read = Store(store.root).read(KIND, toy().key)
    assert read == payload
    assert stored == put == store.peek(KIND, toy().key)
    assert (stored.kind, stored.key, stored.unit, stored.num_bytes) == (KIND, toy().key, "unit-0", len(payload))
    assert stored.meta == meta
    assert store.check(KIND, toy().key) is None


def test_a_cell_file_records_what_it_was_made_from(store: Store, path: Path) -> None:
    assert canonical_json({"n": 0}).encode() in path.read_bytes()


def test_a_missing_cell_is_no_damage(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.peek(KIND, toy().key) is None
    assert store.check(KIND, toy().key) is None
    with pytest.raises(MissingCell, match=toy().key):
        store.read(KIND, toy().key)
    assert capsys.readouterr().err == ""


def test_putting_a_cell_again_replaces_it(store: Store, path: Path) -> None:
    path.write_bytes(b"torn")
    store.put(toy(), PAYLOAD)
    store.put(toy(), PAYLOAD)
    assert store.read(KIND, toy().key)[1] == PAYLOAD
    assert temporaries(store.root) == []


def test_a_use_is_noted_once_it_is_an_hour_old_and_a_check_is_no_use(store: Store, path: Path) -> None:
    for use, noted in [(store.check, False), (store.peek, True), (store.read, True)]:
        long_ago = path.stat().st_mtime - 10 * DAYS
        os.utime(path, (long_ago, long_ago))
        use(KIND, toy().key)
        assert (path.stat().st_mtime > long_ago + DAYS) is noted
    before = path.stat().st_mtime_ns
    store.read(KIND, toy().key)
    assert path.stat().st_mtime_ns == before


# Damage


class Damager:
    """Puts damaged bytes in a cell's place and sees that the store never uses them."""

    def __init__(self, store: Store, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.store = store
        self.path = path
        self.capsys = capsys
        self.whole = path.read_bytes()
        self.head = len(self.whole) - len(PAYLOAD)
        self.stat = path.stat()

    def plant(self, data: bytes) -> None:
        """Write over the cell in place, with its time of modification kept: nothing but the bytes tells."""
        assert data != self.whole
        self.path.write_bytes(data)
        os.utime(self.path, ns=(self.stat.st_atime_ns, self.stat.st_mtime_ns))

    def assert_reported_and_removed(self) -> None:
        report = self.capsys.readouterr().err
        assert report.count("\n") == 1
        assert report.startswith(f"cells: {KIND} {self.path.stem[:12]} is damaged (")
        assert report.endswith("): removed, it will be computed again\n")
        assert not self.path.exists()

    def assert_never_used(self, data: bytes, *, seen_by_peek: bool) -> None:
        kind, key = KIND, self.path.stem
        self.plant(data)
        assert self.store.check(kind, key) is not None
        assert self.path.read_bytes() == data, "check must not touch it"
        with pytest.raises(MissingCell):
            self.store.read(kind, key)
        self.assert_reported_and_removed()

        self.plant(data)
        if seen_by_peek:
            assert self.store.peek(kind, key) is None
            self.assert_reported_and_removed()
        else:  # the payload is behind what peek reads
            assert self.store.peek(kind, key) is not None
            assert self.capsys.readouterr().err == ""


@pytest.fixture
def damager(store: Store, path: Path, capsys: pytest.CaptureFixture[str]) -> Damager:
    return Damager(store, path, capsys)


def test_a_cell_cut_off_anywhere_is_never_used(damager: Damager) -> None:
    for length in range(len(damager.whole)):
        damager.assert_never_used(damager.whole[:length], seen_by_peek=True)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_cell_with_any_byte_changed_is_never_used(damager: Damager, mask: int) -> None:
    for position in range(len(damager.whole)):
        changed = bytearray(damager.whole)
        changed[position] ^= mask
        damager.assert_never_used(bytes(changed), seen_by_peek=position < damager.head)


@pytest.mark.parametrize("garbage", [b"\0", b"\n", PAYLOAD, bytes(4096)])
def test_a_cell_with_bytes_appended_is_never_used(damager: Damager, garbage: bytes) -> None:
    damager.assert_never_used(damager.whole + garbage, seen_by_peek=True)


def test_a_cell_whose_end_became_zeros_is_never_used(damager: Damager) -> None:
    """What some file systems leave after a power cut: the right length, and no data."""
    for length in range(len(damager.whole)):
        zeros = damager.whole[:length] + bytes(len(damager.whole) - length)
        damager.assert_never_used(zeros, seen_by_peek=length < damager.head)


def test_a_cell_copied_under_another_key_or_kind_is_never_used(store: Store, damager: Damager) -> None:
    other = toy(1)
    store.put(other, PAYLOAD)
    damager.assert_never_used(store.path(KIND, other.key).read_bytes(), seen_by_peek=True)
    elsewhere = store.path("toy/other", toy().key)
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(damager.whole)
    assert store.check("toy/other", toy().key) == f"it belongs to {KIND} {toy().key[:12]}"
    assert store.peek("toy/other", toy().key) is None
    assert not elsewhere.exists()


def test_a_cell_of_another_version_with_fewer_fields_is_computed_again(damager: Damager) -> None:
    header = json.dumps({"kind": KIND, "key": toy().key}).encode()
    digest = hashlib.sha256(header).digest()
    head = MAGIC + len(header).to_bytes(8, "little") + header + digest
    damager.assert_never_used(head + PAYLOAD, seen_by_peek=True)


def test_a_damaged_cell_can_be_put_again(store: Store, damager: Damager) -> None:
    damager.assert_never_used(damager.whole[:-1], seen_by_peek=True)
    store.put(toy(), PAYLOAD)
    assert store.read(KIND, toy().key)[1] == PAYLOAD


def replace_by_rename(path: Path, whole: bytes) -> None:
    files.write_bytes(path, whole)


def replace_after_removal(path: Path, whole: bytes) -> None:
    """As a process does that finds the damage too. Some file systems give a new file the inode of a removed one."""
    inode = path.stat().st_ino
    path.unlink()
    for number in range(300):  # until that happens
        new = path.with_name(f"new-{number}")
        new.write_bytes(whole)
        if new.stat().st_ino == inode:
            break
    new.replace(path)


@pytest.mark.parametrize("replace", [replace_by_rename, replace_after_removal])
@pytest.mark.parametrize("use", ["peek", "read"])
def test_a_good_cell_put_by_another_process_before_the_damaged_one_is_removed_stays(
    store: Store, path: Path, use: str, replace: Callable[[Path, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    discard = Store._discard

    def late(self: Store, *args: Any) -> None:
        replace(path, whole)
        discard(self, *args)

    monkeypatch.setattr(Store, "_discard", late)
    if use == "peek":
        assert store.peek(KIND, toy().key) is None
    else:
        with pytest.raises(MissingCell):
            store.read(KIND, toy().key)
    assert path.exists()
    assert store.read(KIND, toy().key)[1] == PAYLOAD


def test_a_damaged_cell_that_another_process_removed_first_is_no_error(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"torn")
    discard = Store._discard

    def late(self: Store, *args: Any) -> None:
        path.unlink()
        discard(self, *args)

    monkeypatch.setattr(Store, "_discard", late)
    assert store.peek(KIND, toy().key) is None


# A disk that refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_full_at_the_flush_is_one_clear_error_and_leaves_no_litter(
    store: Store, path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"disk of .*cells is full \(writing a toy/numbers cell of 5 bytes\): free space"
    ):
        store.put(toy(1), b"12345")
    monkeypatch.undo()
    assert temporaries(store.root) == []
    assert store.peek(KIND, toy(1).key) is None
    assert store.read(KIND, toy().key)[1] == PAYLOAD
    store.put(toy(1), b"12345")
    assert store.read(KIND, toy(1).key)[1] == b"12345"


def test_another_error_of_the_disk_says_what_to_do(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError, match=r"can't write to the cell store .*Input/output error.*FRAMELORA_CELLS"):
        store.put(toy(1), b"12345")
    assert temporaries(store.root) == []


def test_a_store_where_a_file_is_in_the_way_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cells").write_text("not a folder")
    with pytest.raises(UserError, match="set FRAMELORA_CELLS to a folder that is"):
        Store(tmp_path / "cells").put(toy(), PAYLOAD)


def test_a_store_of_another_user_is_read_and_refuses_writes_clearly(
    open_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(open_folder / "cells")
    store.put(toy(), PAYLOAD)
    store.put(toy(1), PAYLOAD)
    whole, broken = (store.path(KIND, toy(n).key) for n in (0, 1))
    broken.write_bytes(b"torn")
    os.utime(whole, (0, 0))
    folders = [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    monkeypatch.chdir(open_folder)
    monkeypatch.setenv("FRAMELORA_CELLS", str(store.root))
    with unprivileged():
        assert store.read(KIND, toy().key)[1] == PAYLOAD
        with pytest.raises(MissingCell):
            store.read(KIND, toy(1).key)
        assert "not used, but it can't be removed (Permission denied)" in capsys.readouterr().err
        for n in (0, 1, 2):
            with pytest.raises(UserError, match=r"can't write to the cell store cells \(Permission denied\): make it"):
                store.put(toy(n), PAYLOAD)
        with pytest.raises(UserError, match=r"can't write to the cell store cells \(Permission denied\): make it"):
            open_store()
    for folder in folders:
        folder.chmod(0o755)
    assert temporaries(store.root) == []


# Where a store lies


@pytest.mark.parametrize("copy", ["xyz", "standalone/tmp1", "tmp2/deeper/still"])
def test_a_copy_that_dvc_runs_experiments_in_shares_the_store_of_its_repository(
    tmp_path: Path, copy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "repo/.dvc/tmp/exps" / copy
    inside.mkdir(parents=True)
    monkeypatch.delenv("FRAMELORA_CELLS", raising=False)
    monkeypatch.chdir(inside)
    assert repository_root() == tmp_path / "repo"
    assert open_store().root == tmp_path / "repo/.cells"
    monkeypatch.setenv("FRAMELORA_CELLS", "../shared")  # relative to the repository, wherever the copy lies
    assert open_store().root.resolve() == tmp_path / "shared"


@pytest.mark.parametrize("name", ["repo", "tmp/exps/xyz", "repo/.dvc/tmp/xyz", "exps"])
def test_any_other_working_directory_is_the_repository(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name)
    assert repository_root() == tmp_path / name


def test_opening_a_store_makes_it_and_registers_the_checkout_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FRAMELORA_CELLS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert open_store().root == tmp_path / ".cells"
    (note,) = (tmp_path / ".cells/checkouts").iterdir()
    before = note.stat()
    open_store()
    assert json.loads(note.read_text()) == {"path": str(tmp_path)}
    assert os.path.samestat(before, note.stat())
    monkeypatch.setenv("FRAMELORA_CELLS", str(tmp_path / "elsewhere"))
    assert open_store().root == tmp_path / "elsewhere"
    monkeypatch.setenv("FRAMELORA_CELLS", "")  # set but empty is not set
    assert open_store().root == tmp_path / ".cells"

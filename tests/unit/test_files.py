"""Files are whole or not there, and never edited through a link."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framelora import files
from framelora.console import UserError

SCHEMA = pa.schema(
    [
        files.column("name", pa.string(), "a name"),
        files.column("length", pa.float64(), "how long it lasts", "s"),
        files.column("numbers", pa.list_(pa.int64()), "some numbers"),
    ]
)
ROWS: list[dict[str, Any]] = [
    {"name": "a", "length": 1.5, "numbers": [1, 2]},
    {"name": "ü", "length": None, "numbers": []},
]


def names(folder: Path) -> list[str]:
    """Everything inside a folder, folders with a slash at their end."""
    return sorted(path.relative_to(folder).as_posix() + "/" * path.is_dir() for path in folder.rglob("*"))


def refuse(*args: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


# write_bytes


@pytest.mark.parametrize("data", [b"", b"x", bytes(1_000_000)])
def test_a_file_is_written_with_its_folders_and_nothing_beside_it(tmp_path: Path, data: bytes) -> None:
    files.write_bytes(tmp_path / "deep/er/file", data)
    assert (tmp_path / "deep/er/file").read_bytes() == data
    assert names(tmp_path) == ["deep/", "deep/er/", "deep/er/file"]
    assert files.file_digest(tmp_path / "deep/er/file") == hashlib.sha256(data).hexdigest()


def test_writing_leaves_the_other_hard_link_untouched(tmp_path: Path) -> None:
    """DVC's cache shares an inode with the workspace: writing into it would corrupt the cache."""
    cached, workspace = tmp_path / "cached", tmp_path / "workspace"
    cached.write_bytes(b"what the cache's digest says")
    os.link(cached, workspace)
    files.write_bytes(workspace, b"new")
    assert cached.read_bytes() == b"what the cache's digest says"
    assert workspace.read_bytes() == b"new"
    assert not cached.samefile(workspace)


def test_writing_replaces_a_symbolic_link_and_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "cached").write_bytes(b"cached")
    (tmp_path / "workspace").symlink_to("cached")
    files.write_bytes(tmp_path / "workspace", b"new")
    assert (tmp_path / "cached").read_bytes() == b"cached"
    assert not (tmp_path / "workspace").is_symlink()


def test_a_read_only_file_of_the_cache_is_replaced_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o444)  # DVC protects linked files so
    files.write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_failure_before_the_rename_keeps_the_old_file_and_leaves_no_litter(
    tmp_path: Path, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(owner, name, refuse)
    for write in (files.write_bytes, lambda path, data: files.write_text(path, data.decode())):
        with pytest.raises(OSError, match="Input/output error"):
            write(path, b"new")
        with pytest.raises(OSError, match="Input/output error"):
            write(tmp_path / "another", b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_interrupt_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "file", b"new")
    assert names(tmp_path) == []


def test_data_reaches_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the file is the old one or the new one, never an empty one under the new name."""
    path, calls = tmp_path / "file", []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        of_folder = os.path.samestat(os.fstat(descriptor), tmp_path.stat())
        calls.append("folder" if of_folder else f"{os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    files.write_bytes(path, b"12345")
    assert calls == ["5 bytes", "rename", "folder"]


# JSON and tables


def test_json_is_sorted_and_ends_with_a_newline_and_nan_is_refused(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": "ü", "a": [1]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    1\n  ],\n  "b": "ü"\n}\n'
    assert files.read_json(tmp_path / "a.json") == {"a": [1], "b": "ü"}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["a"] == [1]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    files.write_table(tmp_path / "a.parquet", ROWS, SCHEMA)
    files.write_table(tmp_path / "b.parquet", [dict(reversed(row.items())) for row in ROWS], SCHEMA)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    files.write_table(tmp_path / "b.parquet", ROWS[::-1], SCHEMA)
    assert (tmp_path / "a.parquet").read_bytes() != (tmp_path / "b.parquet").read_bytes()


def test_a_table_is_read_back_with_the_meaning_and_unit_of_its_columns(tmp_path: Path) -> None:
    files.write_table(tmp_path / "a.parquet", ROWS, SCHEMA)
    table = files.read_table(tmp_path / "a.parquet")
    assert list(table.name) == ["a", "ü"]
    assert table.length[0] == 1.5
    assert pd.isna(table.length[1])
    assert [list(numbers) for numbers in table.numbers] == [[1, 2], []]
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.field("length").metadata == {b"about": b"how long it lasts", b"unit": b"s"}
    assert schema.field("name").metadata == {b"about": b"a name"}


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    files.write_table(tmp_path / "a.parquet", [], SCHEMA)
    assert list(files.read_table(tmp_path / "a.parquet").columns) == SCHEMA.names


@pytest.mark.parametrize("read", [files.read_table, files.read_json])
def test_a_missing_file_says_which_and_what_to_do(
    tmp_path: Path, read: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^data/a is missing: run `dvc repro`, which makes it$"):
        read(Path("data/a"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1} x'])
def test_damaged_json_says_which_and_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON .*: delete it and run `dvc repro`"):
        files.read_json(tmp_path / "a.json")


def test_a_table_cut_off_anywhere_says_which_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    files.write_table(path, ROWS, SCHEMA)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.parquet is damaged"):
            files.read_table(path)


def test_a_table_with_changed_bytes_is_never_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    files.write_table(path, ROWS, SCHEMA)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 2):
        changed = bytearray(whole)
        changed[position] ^= 0xFF
        path.write_bytes(changed)
        try:
            files.read_table(path)
        except UserError:
            refused += 1
    assert refused > len(whole) / 8


# replace_folder


def test_a_folder_holds_exactly_what_it_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    files.replace_folder(folder, {"stray": b"1", "deep/stray": b"2", "deep/er/stray": b"3", "kept": b"4", "x/y": b"5"})
    (folder / "empty/emptier").mkdir(parents=True)
    (folder / ".tmp-1-abc").write_bytes(b"a killed writer's")
    (folder / "dangling").symlink_to("nowhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_bytes(b"not ours")
    (folder / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    files.replace_folder(folder, {"kept": b"new", "x/z": b"6"})
    assert names(folder) == ["kept", "x/", "x/z"]
    assert (folder / "kept").read_bytes() == b"new"
    assert (tmp_path / "elsewhere/file").read_bytes() == b"not ours"


def test_a_folder_of_nothing_is_an_empty_folder(tmp_path: Path) -> None:
    """An out that DVC expects must be there, with or without files."""
    files.replace_folder(tmp_path / "out", {})
    assert (tmp_path / "out").is_dir()
    files.replace_folder(tmp_path / "out", {"deep/a": b"1"})
    files.replace_folder(tmp_path / "out", {})
    assert names(tmp_path) == ["out/"]


def test_replacing_a_folder_leaves_what_its_files_are_linked_to(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("kept", "stray"):
        (tmp_path / "cache" / name).write_bytes(b"cached")
        os.link(tmp_path / "cache" / name, tmp_path / "out" / name)
    files.replace_folder(tmp_path / "out", {"kept": b"new"})
    assert [(tmp_path / "cache" / name).read_bytes() for name in ("kept", "stray")] == [b"cached", b"cached"]
    assert names(tmp_path / "out") == ["kept"]


def test_a_failure_in_the_middle_of_a_folder_leaves_whole_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    files.replace_folder(folder, {"a": b"old a", "b": b"old b"})
    replace = Path.replace

    def fail_at_b(self: Path, target: Path) -> Path:
        if target.name == "b":
            refuse()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_b)
    with pytest.raises(OSError, match="Input/output error"):
        files.replace_folder(folder, {"a": b"new a", "b": b"new b"})
    assert [(folder / name).read_bytes() for name in "ab"] == [b"new a", b"old b"]
    assert names(folder) == ["a", "b"]

"""The files under data.root and their captions: nothing a person can put there raises, and every mistake is named."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framelora.console import UserError
from framelora.dataset import captions, sources
from framelora.dataset.captions import read_metadata, read_sidecar
from framelora.dataset.checks import check_captions
from framelora.dataset.metadata import as_number
from framelora.dataset.paths import Names, resolve_inside
from framelora.dataset.rules import RULES, Finding, judge
from framelora.dataset.sources import DigestCache, Source, group, scan, source_rows, walk
from framelora.dataset.tokens import WORDS
from framelora.digest import sha256
from framelora.media.probe import Facts
from framelora.params import load_params


def make_files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))


# walk and group


def test_files_are_found_at_any_depth_but_not_hidden_ones(tmp_path: Path) -> None:
    make_files(
        tmp_path, "b.mp4", "a/deep/c d.MOV", "ü/日本.webm", ".hidden.mp4", ".git/x.mp4", "a/.thumb/y.mp4", "no.txt"
    )
    assert walk(tmp_path) == ["a/deep/c d.MOV", "b.mp4", "no.txt", "ü/日本.webm"]


def test_a_name_that_is_not_utf_8_is_a_users_mistake(tmp_path: Path) -> None:
    make_files(tmp_path, os.fsdecode(b"caf\xe9.mp4"))
    with pytest.raises(UserError, match=r"'caf\\udce9.mp4' is not UTF-8: rename the file"):
        walk(tmp_path)
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).rename(tmp_path / os.fsdecode(b".caf\xe9.mp4"))
    assert scan(tmp_path) == ([], [Finding("hidden-file", ".caf\ufffd.mp4", "is hidden: not looked at")])


def test_files_are_grouped_in_clips_pairs_widows_and_single_images() -> None:
    found, findings = group(
        sorted(
            [
                "clip.MP4", "clip.txt", "metadata.json", "notes.pdf",
                "a_start.png", "a_end.jpg", "deep/B_START.JPG", "deep/B_End.Webp",
                "c_start.png", "d_END.jpeg", "portrait.png", "_start.png", "deep/_end.png", "start.png",
                "x_starting.png",
                "mixed_case_start.png", "mixed_Case_end.png",
            ]
        )
    )  # fmt: skip
    assert found == [
        Source("a", "image_pair", "a_start.png", "a_end.jpg"),
        Source("clip.MP4", "video", "clip.MP4"),
        Source("deep/B", "image_pair", "deep/B_START.JPG", "deep/B_End.Webp"),
    ]
    halves = ["c_start.png", "d_END.jpeg", "mixed_Case_end.png", "mixed_case_start.png"]
    single = ["_start.png", "deep/_end.png", "portrait.png", "start.png", "x_starting.png"]
    assert sorted((finding.rule, finding.where) for finding in findings) == [
        *(("half-pair", name) for name in halves),
        *(("single-image", name) for name in single),
    ]


def test_single_images_are_sources_when_they_are_asked_for() -> None:
    found, findings = group(["a.JPG", "b_start.png", "b_end.png", "c_start.png"], images=True)
    assert found == [Source("a.JPG", "image", "a.JPG"), Source("b", "image_pair", "b_start.png", "b_end.png")]
    assert [finding.rule for finding in findings] == ["half-pair"]


def test_a_second_image_for_the_same_half_is_reported() -> None:
    found, findings = group(["a_end.jpg", "a_start.jpg", "a_start.png"])
    assert found == [Source("a", "image_pair", "a_start.jpg", "a_end.jpg")]
    assert findings == [Finding("half-pair", "a_start.png", "stands for the same half as a_start.jpg")]


NFC, NFD = (unicodedata.normalize(form, "ü") for form in ("NFC", "NFD"))


def test_halves_in_different_unicode_forms_are_a_pair() -> None:
    found, findings = group([f"{NFC}_start.png", f"{NFD}_end.png"])
    assert (found, findings) == ([Source(NFC, "image_pair", f"{NFC}_start.png", f"{NFD}_end.png")], [])


def test_halves_of_one_spelling_go_together_before_others() -> None:
    paths = [f"{NFC}_start.png", f"{NFC}_end.png", f"{NFD}_start.png", f"{NFD}_end.png"]
    found, findings = group(paths)
    assert sorted(source.paths for source in found) == sorted([paths[:2], paths[2:]])
    assert findings == []
    found, (finding,) = group(paths[:3])
    assert [source.paths for source in found] == [paths[:2]]
    assert finding == Finding("half-pair", paths[2], "has no other half")


@given(
    st.lists(
        st.sampled_from(
            [
                f"{NFC}_start",
                f"{NFD}_start",
                f"{NFC}_end",
                f"{NFD}_end",
                "a",
                "a_start",
                "a_end",
                "b/a_START",
                "b/a_end",
                "_start",
                "a_start_end",
            ]
        ),
        unique=True,
    )
)
def test_every_image_is_in_exactly_one_place(stems: list[str]) -> None:
    paths = sorted(f"{stem}{suffix}" for stem in stems for suffix in (".png", ".JPG"))
    for images in (False, True):
        found, findings = group(paths, images=images)
        assert sorted([path for source in found for path in source.paths] + [each.where for each in findings]) == paths


# content ids


def test_the_content_id_is_that_of_the_content_under_every_name() -> None:
    digests = {"a.mp4": "1", "deep/b.mp4": "1", "c.mp4": "2", "s.png": "3", "e.png": "4"}
    clip = Source("a.mp4", "video", "a.mp4").content_id(digests)
    assert clip == Source("b", "video", "deep/b.mp4").content_id(digests)
    assert clip != Source("c", "video", "c.mp4").content_id(digests)
    pair = Source("p", "image_pair", "s.png", "e.png").content_id(digests)
    assert pair != Source("p", "image_pair", "e.png", "s.png").content_id(digests)
    assert pair == Source("q", "image_pair", "s.png", "e.png").content_id(digests)
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in (clip, pair))


def test_rows_have_exactly_the_columns_of_the_schema() -> None:
    facts = Facts(30, 20, 1, 0.0, 0.0, "png", 0)
    pair = Source("p", "image_pair", "s.png", "e.png")
    (row,) = source_rows([pair], {"s.png": "3", "e.png": "4"}, lambda path: facts)
    assert set(row) == set(sources.SCHEMA.names)
    assert (row["digest"], row["end_digest"], row["width"]) == ("3", "4", 30)


# DigestCache


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, in order."""
    read: list[str] = []

    def digest(path: Path) -> str:
        read.append(path.name)
        return sha256(path.read_bytes())

    monkeypatch.setattr(sources, "file_digest", digest)
    return read


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, counted: list[str]) -> None:
    clip, cache = tmp_path / "a.mp4", tmp_path / "cells/digests.json"

    def run() -> str:
        digests = DigestCache(cache)
        result = digests.digest(clip)
        digests.save()
        return result

    clip.write_bytes(b"one")
    assert run() == run() == run() == sha256(b"one")
    assert len(counted) == 1
    before = clip.stat()
    clip.write_bytes(b"two")  # the same length
    os.utime(clip, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert run() == sha256(b"two")
    assert len(counted) == 2
    other = tmp_path / "b.mp4"
    other.write_bytes(b"six")  # the same length and modification time, moved over the file: another inode
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    other.replace(clip)
    assert run() == sha256(b"six")
    assert len(counted) == 3
    clip.write_bytes(b"ten")  # and with its old time put back, as `touch -r` does: the change time tells
    os.utime(clip, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert run() == sha256(b"ten")


def test_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    make_files(tmp_path, "a.mp4", "b.mp4")
    path = tmp_path / "digests.json"
    for names in (["a.mp4", "b.mp4"], ["b.mp4"]):
        cache = DigestCache(path)
        for name in names:
            cache.digest(tmp_path / name)
        cache.save()
    assert list(json.loads(path.read_text())) == [str(tmp_path / "b.mp4")]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"x"', b'{"PATH": 5}', b'{"PATH": []}'])
def test_a_corrupt_cache_costs_only_the_reading(tmp_path: Path, counted: list[str], content: bytes) -> None:
    make_files(tmp_path, "a.mp4")
    path = tmp_path / "digests.json"
    path.write_bytes(content.replace(b"PATH", str(tmp_path / "a.mp4").encode()))
    cache = DigestCache(path)
    assert cache.digest(tmp_path / "a.mp4") == sha256(b"a.mp4")
    cache.save()
    DigestCache(path).digest(tmp_path / "a.mp4")
    assert counted == ["a.mp4"]


# resolve_inside


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A data root with a secret beside it and links of all kinds."""
    root = tmp_path / "data"
    make_files(tmp_path, "secret.mp4")
    make_files(root, "a.mp4", "deep/b c.mp4", "ü.mp4", "1:30 take.mp4")
    (root / "inside.mp4").symlink_to("deep/b c.mp4")
    (root / "outside.mp4").symlink_to("../secret.mp4")
    (root / "away").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nothing")
    return root


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("a.mp4", "a.mp4"),
        ("./a.mp4", "a.mp4"),
        ("deep//b c.mp4", "deep/b c.mp4"),
        ("deep/../a.mp4", "a.mp4"),
        ("deep/./../deep/b c.mp4", "deep/b c.mp4"),
        ("inside.mp4", "inside.mp4"),
        ("ü.mp4", "ü.mp4"),
        ("1:30 take.mp4", "1:30 take.mp4"),
    ],
)
def test_a_path_inside_is_taken(tree: Path, written: str, name: str) -> None:
    assert resolve_inside(tree, written) == name


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("../secret.mp4", "leaves data.root"),
        ("../data/a.mp4", "leaves data.root"),
        ("deep/../../secret.mp4", "leaves data.root"),
        ("..", "leaves data.root"),
        ("outside.mp4", "leaves data.root"),
        ("away/secret.mp4", "leaves data.root"),
        ("/etc/passwd", "is absolute"),
        ("C:/a.mp4", "is absolute"),
        ("c:\\a.mp4", "is absolute"),
        ("a:/b.mp4", "is absolute"),
        ("C:a.mp4", "does not exist"),
        ("deep\\b c.mp4", "uses backslashes"),
        ("https://example.com/a.mp4", "is an address"),
        ("file:///etc/passwd", "is an address"),
        ("a.mp4\0", "is not a path"),
        ("", "is not a path"),
        ("  ", "is not a path"),
        ("deep", "is not a file"),
        (".", "is not a file"),
        ("missing.mp4", "does not exist"),
        ("a.mp4/b", "does not exist"),
        ("dangling", "does not exist"),
        ("loop", "is a link that leads to itself|can't be looked up|does not exist"),
        ("x" * 5000, "can't be looked up"),
    ],
)
def test_a_path_that_leaves_the_root_or_names_no_file_is_refused(tree: Path, written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        resolve_inside(tree, written)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_a_name_is_found_in_either_unicode_form(tmp_path: Path, form: str, written: str) -> None:
    name = unicodedata.normalize(form, "Kätzchen/für é.mp4")
    make_files(tmp_path, name)
    assert Names(tmp_path, walk(tmp_path)).find(unicodedata.normalize(written, "Kätzchen/für é.mp4")) == name


def test_two_names_that_differ_in_their_unicode_form_alone_are_two_files(tmp_path: Path) -> None:
    both = [unicodedata.normalize(form, "é.mp4") for form in ("NFC", "NFD")]
    make_files(tmp_path, *both)
    names = Names(tmp_path, walk(tmp_path))
    assert [names.find(name) for name in both] == both


def test_a_path_through_a_link_is_the_files_own_name(tree: Path) -> None:
    (tree / "link").symlink_to("deep")
    make_files(tree, ".DS_Store", "deep/.thumbs/x.mp4")
    os.mkfifo(tree / "pipe.mp4")
    names, findings = scan(tree)
    assert Names(tree, names).find("link/b c.mp4") == "deep/b c.mp4"
    assert findings == [
        Finding("broken-link", "dangling", "is a link to nothing, or to itself"),
        Finding("broken-link", "loop", "is a link to nothing, or to itself"),
        Finding("hidden-file", ".DS_Store", "is hidden: not looked at"),
        Finding("hidden-file", "deep/.thumbs", "is hidden: not looked at"),
        Finding("link-outside", "away", "is a link that leads out of data.root"),
        Finding("link-outside", "outside.mp4", "is a link that leads out of data.root"),
        Finding("link-to-folder", "link", "is a link to a folder"),
        Finding("special-file", "pipe.mp4", "is neither a file nor a folder: not opened"),
    ]
    assert names == ["1:30 take.mp4", "a.mp4", "deep/b c.mp4", "inside.mp4", "ü.mp4"]


# metadata files


def metadata(root: Path, value: object, name: str = "metadata.json") -> tuple[dict[str, list[str]], list[Finding]]:
    """Texts by file and findings, of a metadata file (bytes as they are, anything else as JSON)."""
    (root / name).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    found, findings = read_metadata(root, walk(root))
    return {file: [row.text or "" for row in rows] for file, rows in found.items()}, findings


@pytest.mark.parametrize(
    ("content", "rule", "message"),
    [
        (b"{", "metadata-unreadable", "is not valid JSON"),
        (b"", "metadata-unreadable", "is not valid JSON"),
        (b'[\n{"file_path": "caf\xe9.mp4"}]', "encoding", "line 2 is not UTF-8 (byte 0xe9)"),
        (b"[" * 100_000, "metadata-unreadable", "is not valid JSON"),
        (b"[" + b"9" * 5000 + b"]", "metadata-unreadable", "is not valid JSON"),
        (b'{"file_path": "a.mp4"}', "metadata-unreadable", "must be a list of rows"),
        (b"null", "metadata-unreadable", "must be a list of rows"),
    ],
)
def test_unreadable_metadata_is_one_error(tree: Path, content: bytes, rule: str, message: str) -> None:
    found, (finding,) = metadata(tree, content)
    assert found == {}
    assert (finding.rule, finding.where) == (rule, "metadata.json")
    assert finding.message.startswith(message)


@pytest.mark.parametrize(
    ("row", "rule", "part"),
    [
        ({}, "metadata-row", "file_path: field required"),
        ({"text": "x"}, "metadata-row", "file_path: field required"),
        ({"file_path": 5}, "metadata-row", "file_path: input should be a valid string"),
        ({"file_path": "a.mp4", "text": None}, "metadata-row", "text: input should be a valid string"),
        ({"file_path": "a.mp4", "text": ["x"]}, "metadata-row", "text: input should be a valid string"),
        ({"file_path": "a.mp4", "text": "\ud800"}, "metadata-row", "text: value error, holds half"),
        ({"file_path": "\udcff"}, "metadata-row", "file_path: value error, holds half"),
        ({"file_path": "a.mp4", "tag": "\ud800"}, "metadata-row", "a column holds half"),
        ({"file_path": "a.mp4", "file_name": "a.mp4"}, "metadata-row", "has both file_path and file_name"),
        ({"file_path": "a.mp4", "type": "film"}, "metadata-row", "type: input should be"),
        ({"file_path": "a.mp4", "type": "image"}, "wrong-type", "a.mp4 is not of type 'image'"),
        ({"file_path": "gone.mp4"}, "path-missing", "'gone.mp4' does not exist"),
        ({"file_path": "../secret.mp4"}, "path-outside", "leaves data.root"),
        ({"file_path": "/a.mp4"}, "path-not-relative", "is absolute"),
        ({"file_name": "https://example.com/a.mp4"}, "path-not-relative", "is an address"),
        ("a.mp4", "metadata-row", "row: input should be a valid dictionary"),
        (None, "metadata-row", "row: input should be a valid dictionary"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(tree: Path, row: Any, rule: str, part: str) -> None:
    found, (finding,) = metadata(tree, [{"file_path": "deep/b c.mp4", "text": " good\n"}, row])
    assert found["deep/b c.mp4"] == ["good"]
    assert (finding.rule, finding.where) == (rule, "metadata.json row 1")
    assert part in finding.message
    assert RULES[rule].severity == "error"


def test_a_byte_order_mark_and_other_keys_are_allowed(tree: Path) -> None:
    row = {"file_path": "a.mp4", "text": "ünï", "type": "video", "width": 640, "tags": ["x"]}
    assert metadata(tree, b"\xef\xbb\xbf" + json.dumps([row]).encode()) == ({"a.mp4": ["ünï"]}, [])


ROWS_OF_FOUR_FORMATS = [
    {"file_name": "a.mp4", "text": 'says "hi", twice', "score": 0.5, "scene": "wood"},
    {"file_name": "deep/b c.mp4", "text": "zwei\nZeilen", "score": 2, "scene": "ü"},
]


def write_metadata(path: Path, rows: list[dict[str, Any]]) -> None:
    match path.suffix.lower():
        case ".json":
            path.write_text(json.dumps(rows))
        case ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
        case ".csv":
            pd.DataFrame(rows).to_csv(path, index=False)
        case ".parquet":
            pd.DataFrame(rows).to_parquet(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("column", ["file_path", "file_name"])
def test_every_format_says_the_same(tree: Path, suffix: str, column: str) -> None:
    rows = [
        {column: row["file_name"], **{k: v for k, v in row.items() if k != "file_name"}} for row in ROWS_OF_FOUR_FORMATS
    ]
    write_metadata(tree / f"metadata{suffix}", rows)
    found, findings = read_metadata(tree, walk(tree))
    assert findings == []
    assert {file: (row.text, row.type) for file, (row,) in found.items()} == {
        "a.mp4": ('says "hi", twice', None),
        "deep/b c.mp4": ("zwei\nZeilen", None),
    }
    columns = {file: row.columns for file, (row,) in found.items()}
    assert {file: (as_number(named["score"]), named["scene"]) for file, named in columns.items()} == {
        "a.mp4": (0.5, "wood"),
        "deep/b c.mp4": (2.0, "ü"),
    }


@pytest.mark.parametrize("column", ["caption", "prompt", "description", "Text", " text", "TEXT ", "Captions"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_captions_in_a_column_of_another_name_are_a_warning(tree: Path, suffix: str, column: str) -> None:
    rows = [{"file_name": name, column: "a hand waves", "scene": "wood"} for name in ("a.mp4", "ü.mp4")]
    write_metadata(tree / f"metadata{suffix}", rows)
    found, (finding,) = read_metadata(tree, walk(tree))
    assert (finding.rule, finding.where) == ("caption-column", f"metadata{suffix}")
    assert finding.message == f"no row has `text`; 2 have {column!r}, which is no caption here"
    assert RULES[finding.rule].severity == "warning"
    assert found["a.mp4"][0].columns[column] == "a hand waves"


def test_a_column_beside_text_may_be_called_anything(tree: Path) -> None:
    write_metadata(tree / "metadata.csv", [{"file_name": "a.mp4", "text": "a hand", "description": "of 1962"}])
    write_metadata(tree / "metadata.json", [{"file_name": "ü.mp4", "describe": "x", "subtext": "y"}])
    assert read_metadata(tree, walk(tree))[1] == []


def test_paths_are_relative_to_their_metadata_files_folder(tree: Path) -> None:
    """As in Hugging Face's VideoFolder; several files merge."""
    (tree / "deep/metadata.csv").write_text("file_name,text\nb c.mp4,one\n../a.mp4,two\n")
    (tree / "METADATA.jsonl").write_text('{"file_path": "ü.mp4", "text": "three"}')
    found, findings = read_metadata(tree, walk(tree))
    assert findings == []
    assert {file: row.where for file, (row,) in found.items()} == {
        "deep/b c.mp4": "deep/metadata.csv line 2",
        "a.mp4": "deep/metadata.csv line 3",
        "ü.mp4": "METADATA.jsonl line 1",
    }


@pytest.mark.parametrize(
    ("name", "content", "rule", "where", "part"),
    [
        ("metadata.jsonl", b'{"file_path": "a.mp4"}\n{', "metadata-row", "metadata.jsonl line 2", "is not valid JSON"),
        ("metadata.csv", b"name,text\na.mp4,x\n", "metadata-unreadable", "metadata.csv", "file_path among them"),
        ("metadata.csv", b"", "metadata-unreadable", "metadata.csv", "file_path among them"),
        ("metadata.csv", b"file_path,text,text\n", "metadata-unreadable", "metadata.csv", "file_path among them"),
        ("metadata.csv", b"file_path,text\na.mp4,x,y\n", "metadata-row", "metadata.csv line 2", "has 3 cells"),
        ("metadata.csv", b'file_path,text\na.mp4,"x"y\n', "metadata-unreadable", "metadata.csv", "line 2"),
        ("metadata.csv", "file_path,text\na.mp4,é\n".encode("cp1252"), "encoding", "metadata.csv", "line 2"),
        ("metadata.parquet", b"PAR1 no PAR1", "metadata-unreadable", "metadata.parquet", "is not a Parquet table"),
        ("metadata.parquet", b"", "metadata-unreadable", "metadata.parquet", "is not a Parquet table"),
    ],
)
def test_mistakes_in_other_formats_name_their_line(
    tree: Path, name: str, content: bytes, rule: str, where: str, part: str
) -> None:
    _, (finding,) = metadata(tree, content, name)
    assert (finding.rule, finding.where) == (rule, where)
    assert part in finding.message


@pytest.mark.parametrize(
    ("dtype", "value"), [(pa.date32(), 2**31 - 1), (pa.duration("s"), 2**62), (pa.timestamp("ms"), 2**60)]
)
def test_a_date_beyond_those_of_python_names_its_column(tree: Path, dtype: pa.DataType, value: int) -> None:
    stored = pa.array([value], pa.int32() if dtype == pa.date32() else pa.int64())
    pq.write_table(pa.table({"file_path": ["a.mp4"], "taken": stored.cast(dtype)}), tree / "metadata.parquet")
    found, (finding,) = read_metadata(tree, walk(tree))
    assert found == {}
    assert (finding.rule, finding.where) == ("metadata-unreadable", "metadata.parquet")
    assert finding.message.startswith("column 'taken' holds a value out of range (")


def test_a_parquet_table_with_two_columns_of_one_name_is_refused(tree: Path) -> None:
    pq.write_table(pa.table([["a.mp4"], ["x"], ["y"]], ["file_path", "text", "text"]), tree / "metadata.parquet")
    _, (finding,) = read_metadata(tree, walk(tree))
    assert finding == Finding("metadata-unreadable", "metadata.parquet", "has several columns of one name")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["file_path", "file_name", "text", "type", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
PATHS = st.sampled_from(["a.mp4", "deep/b c.mp4", "loop", "..", "away/secret.mp4", "\0", "\ud800", "deep"]) | st.text()
ROWS = st.fixed_dictionaries(
    {"file_path": PATHS | JSON},
    optional={"text": st.text(st.characters()) | JSON, "type": st.sampled_from(["video", "image"]) | JSON, "x": JSON},
)


def check_document(tree: Path, document: object) -> None:
    """Each row ends as a caption or as a finding, and both can be written as UTF-8."""
    found, findings = metadata(tree, document)
    rows = len(document) if isinstance(document, list) else 1
    faulty = [finding for finding in findings if finding.rule != "wrong-type"]
    assert sum(map(len, found.values())) + len(faulty) == rows
    assert all((tree / file).resolve().is_relative_to(tree.resolve()) for file in found)
    assert all(finding.rule in RULES for finding in findings)
    json.dumps([found, [vars(finding) for finding in findings]], ensure_ascii=False).encode()


def check_bytes(tree: Path, name: str, content: bytes) -> None:
    """Nothing raises, and nothing outside of the data root is named."""
    found, _ = metadata(tree, content, name)
    assert all((tree / file).resolve().is_relative_to(tree.resolve()) for file in found)
    (tree / name).unlink()


DOCUMENTS = JSON | st.lists(ROWS | JSON, max_size=5)
NAMES = st.sampled_from(captions.FILES)
SCRAPS = st.lists(
    st.binary(max_size=6)
    | st.sampled_from(
        [b"file_path", b"text", b",", b"\n", b'"', b"{", b"}", b":", b"[", b"]", b"a.mp4", b"PAR1", b"\0"]
    )
).map(b"".join)
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=250, **QUIET)
@given(DOCUMENTS)
def test_no_json_document_raises(tree: Path, document: object) -> None:
    check_document(tree, document)


@settings(max_examples=250, **QUIET)
@given(NAMES, SCRAPS)
def test_no_bytes_raise(tree: Path, name: str, content: bytes) -> None:
    check_bytes(tree, name, content)


@pytest.mark.nightly
@settings(max_examples=5000, **QUIET)
@given(DOCUMENTS)
def test_no_json_document_of_thousands_raises(tree: Path, document: object) -> None:
    check_document(tree, document)


@pytest.mark.nightly
@settings(max_examples=5000, **QUIET)
@given(NAMES, SCRAPS)
def test_no_bytes_of_thousands_raise(tree: Path, name: str, content: bytes) -> None:
    check_bytes(tree, name, content)


@pytest.mark.nightly
def test_a_hundred_thousand_rows_are_read(tmp_path: Path) -> None:
    make_files(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "a.mp4,x\n" * 50_000 + "b.mp4,x\n" * 50_000)
    found, findings = read_metadata(tmp_path, ["a.mp4", "metadata.csv"])
    assert len(found["a.mp4"]) == 50_000
    assert len(findings) == 50_000
    assert len(judge(findings, {})) == 50_000
    assert findings[-1] == Finding("path-missing", "metadata.csv line 100001", "'b.mp4' does not exist")


@pytest.mark.nightly
def test_a_hundred_thousand_rows_go_through_gather_and_the_checks(tmp_path: Path) -> None:
    """A clip each: of every thousand one has no file, one a second row that disagrees, and one a placeholder."""
    count = 100_000
    found = [Source(f"{number:06d}.mp4", "video", f"{number:06d}.mp4") for number in range(count) if number % 1000]
    names = [source.path for source in found] + ["metadata.csv"]
    lines = []
    for number in range(count):
        word = f"{number:020b}".replace("0", "a").replace("1", "e")  # digits aside, captions differ
        lines.append(f"{number:06d}.mp4,{'todo' if number % 1000 == 7 else f'a hand writes {word}'},{number % 9}")
        lines += [f"{number:06d}.mp4,another hand writes it,{number % 9}"] if number % 1000 == 500 else []
    (tmp_path / "metadata.csv").write_text("file_name,text,scene\n" + "\n".join(lines) + "\n")
    ids = {source.name: source.name for source in found}
    gathered = captions.gather(tmp_path, names, found, ids)
    params = load_params(REPOSITORY / "params.yaml").captions
    findings = [*gathered.findings, *check_captions(gathered, found, ids, params, WORDS)]
    assert len(gathered.captions) == len(gathered.columns) == 99_900
    assert gathered.columns["099999.mp4"] == {"scene": "0"}
    counts = Counter(issue.rule for issue in judge(findings, {}))
    each = ["path-missing", "duplicate-row", "conflicting-captions", "placeholder"]
    assert {rule: counts[rule] for rule in each} == dict.fromkeys(each, 100)
    assert set(counts) <= {*each, "repeated-caption", "short-caption"}


# sidecars and their union with metadata.json

A = Source("a.mp4", "video", "a.mp4")
COPY = Source("copy.mp4", "video", "copy.mp4")
PAIR = Source("p", "image_pair", "p_start.png", "p_end.png")
IDS = {"a.mp4": "A", "copy.mp4": "A", "p": "P"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_files(tmp_path, "a.mp4", "copy.mp4", "p_start.png", "p_end.png", "stray.pdf")
    return tmp_path


def gather(root: Path, rows: list[dict[str, str]] | None = None) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Captions, and each finding as its rule and place."""
    if rows is not None:
        (root / "metadata.json").write_text(json.dumps(rows))
    found = captions.gather(root, walk(root), [A, COPY, PAIR], IDS)
    return {content_id: caption.text for content_id, caption in found.captions.items()}, {
        (finding.rule, finding.where) for finding in found.findings
    }


def test_without_captions_there_are_none(root: Path) -> None:
    assert gather(root) == ({}, set())


def test_a_sidecar_belongs_to_its_clip_or_pair(root: Path) -> None:
    (root / "a.txt").write_text("\ufeff a clip \n", encoding="utf-8")
    (root / "p.txt").write_text("a pair")
    (root / "b.txt").write_text("nobody's")
    assert gather(root) == ({"A": "a clip", "P": "a pair"}, {("stray-sidecar", "b.txt")})


def test_a_sidecar_in_upper_case_is_found(root: Path) -> None:
    (root / "a.TXT").write_text("a clip")
    (root / "p.Txt").write_text("a pair")
    assert gather(root) == ({"A": "a clip", "P": "a pair"}, set())


def test_two_sidecars_of_one_clip_must_agree(root: Path) -> None:
    (root / "a.TXT").write_text("a clip")
    (root / "a.txt").write_text("a clip")
    assert gather(root) == ({"A": "a clip"}, set())
    (root / "a.txt").write_text("another")
    assert gather(root)[1] == {("conflicting-captions", "a.TXT and a.txt")}


@pytest.mark.parametrize(("of_clip", "of_text"), [(NFC, NFD), (NFD, NFC)])
def test_a_sidecar_in_another_unicode_form_is_found(tmp_path: Path, of_clip: str, of_text: str) -> None:
    make_files(tmp_path, f"{of_clip}.mp4", f"{of_text}.txt")
    source = Source(f"{of_clip}.mp4", "video", f"{of_clip}.mp4")

    def found() -> tuple[str, list[str]]:
        gathered = captions.gather(tmp_path, walk(tmp_path), [source], {source.name: "A"})
        return gathered.captions["A"].where, [finding.where for finding in gathered.findings]

    assert found() == (f"{of_text}.txt", [])
    (tmp_path / f"{of_clip}.txt").write_text("of exactly its name: this is the one")
    assert found() == (f"{of_clip}.txt", [f"{of_text}.txt"])


def test_a_sidecar_that_is_not_utf_8_is_an_error(root: Path) -> None:
    (root / "a.txt").write_bytes(b"caf\xe9")
    assert read_sidecar(root, "a.txt") == Finding("encoding", "a.txt", "line 1 is not UTF-8 (byte 0xe9)")


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_any_end_of_line_is_one(root: Path, end: str) -> None:
    (root / "a.txt").write_bytes(f"a hand waves,{end}slowly{end}".encode())
    rows = f'file_name,text{end}p_start.png,"two{end}lines"{end}'
    (root / "metadata.csv").write_bytes(rows.encode())
    assert gather(root) == ({"A": "a hand waves,\nslowly", "P": "two\nlines"}, set())


def test_one_caption_serves_every_name_of_a_content(root: Path) -> None:
    captions, issues = gather(root, [{"file_path": "copy.mp4", "text": "x"}, {"file_path": "p_end.png", "text": "y"}])
    assert captions == {"A": "x", "P": "y"}
    assert issues == set()


def test_equal_rows_are_a_warning(root: Path) -> None:
    captions, issues = gather(root, [{"file_path": "a.mp4", "text": "x"}] * 2)
    assert captions["A"] == "x"
    assert issues == {("duplicate-row", "metadata.json row 1")}


def test_a_row_for_each_half_of_a_pair_is_a_duplicate(root: Path) -> None:
    rows = [{"file_path": "p_start.png", "text": "x"}, {"file_path": "p_end.png", "text": "x"}]
    assert ("duplicate-row", "metadata.json row 1") in gather(root, rows)[1]


@pytest.mark.parametrize("other", ["a.mp4", "copy.mp4", "sidecar"])
def test_different_captions_of_one_content_are_an_error(root: Path, other: str) -> None:
    rows = [{"file_path": "a.mp4", "text": "x"}]
    if other == "sidecar":
        (root / "a.txt").write_text("y")
    else:
        rows.append({"file_path": other, "text": "y"})
    place = "a.txt" if other == "sidecar" else "metadata.json row 1"
    assert ("conflicting-captions", f"metadata.json row 0 and {place}") in gather(root, rows)[1]


def test_an_empty_caption_conflicts_with_none(root: Path) -> None:
    (root / "a.txt").write_text("y")
    captions, issues = gather(root, [{"file_path": "a.mp4", "text": " "}])
    assert captions["A"] == "y"
    assert issues == set()


def test_a_row_of_a_file_that_is_no_source_is_a_warning(root: Path) -> None:
    assert ("row-without-source", "metadata.json row 0") in gather(root, [{"file_path": "stray.pdf", "text": "x"}])[1]


def test_columns_of_several_files_merge_and_conflicts_name_both_places(root: Path) -> None:
    (root / "metadata.csv").write_text("file_name,scene,split\na.mp4,wood,test\np_start.png,,train\n")
    (root / "metadata.json").write_text(json.dumps([{"file_path": "copy.mp4", "scene": "sea", "score": 1.5}]))
    found = captions.gather(root, walk(root), [A, COPY, PAIR], IDS)
    assert found.findings == [
        Finding(
            "conflicting-columns",
            "metadata.csv line 2 and metadata.json row 0",
            "column 'scene' of one content is 'wood' and 'sea'",
        )
    ]
    rows = captions.column_rows({name: found.columns[name] for name in ("P", "A")})
    assert [(row["content_id"], row["column"], row["value"]) for row in rows] == [
        ("A", "scene", "sea"), ("A", "score", "1.5"), ("A", "split", "test"), ("P", "split", "train")
    ]  # fmt: skip
    assert [row["number"] for row in rows][1] == 1.5
    assert math.isnan(rows[0]["number"])  # type: ignore[arg-type]

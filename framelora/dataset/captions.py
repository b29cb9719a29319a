"""Captions from `metadata.json` and `.txt` sidecars, and what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from framelora.dataset.sources import Source
from framelora.files import column
from framelora.media.probe import DEMUXERS

SCHEMA = pa.schema(
    [
        column("content_id", pa.string(), "id of the content"),
        column("text", pa.string(), "its caption; empty when it has none"),
    ]
)
METADATA = "metadata.json"


Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, order=True)
class Issue:
    """Something to mend in the data. An `error` stops the pipeline before anything is decoded."""

    severity: Severity
    rule: str
    where: str  # file under data.root, with the row where there is one
    message: str


def _whole_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair: no file can be named or written so") from None
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]


class MetadataRow(BaseModel):
    """One row of the seed guides' metadata.json. Other keys are allowed and left alone."""

    model_config = ConfigDict(extra="allow", strict=True)

    file_path: Text
    text: Text = ""
    type: Literal["video", "image"] | None = None


@dataclass(frozen=True)
class Caption:
    """A caption and where it stands."""

    text: str
    where: str


def resolve_inside(root: Path, file_path: str) -> str:
    """A metadata path as a path under the data root.

    Raises:
        ValueError: it is absolute, an address, leaves the root (also through a link), or names no regular file.
    """
    if "\0" in file_path or not file_path.strip():
        raise ValueError("is not a path")
    if "://" in file_path:
        raise ValueError("is an address: only files under data.root can be used")
    if PurePosixPath(file_path).is_absolute() or "\\" in file_path or file_path[1:2] == ":":
        raise ValueError("is absolute or uses backslashes: write it relative to data.root, with /")
    # The name as written (a link keeps its own name), without `.` and `..`.
    parts: list[str] = []
    for part in PurePosixPath(file_path).parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            raise ValueError("leaves data.root")
    name = "/".join(parts)
    try:
        target = (root / name).resolve()
        is_file = target.is_file()
    except OSError as error:
        raise ValueError(f"can't be looked up ({error.strerror})") from None
    except RuntimeError:  # until Python 3.13
        raise ValueError("is a link that leads to itself") from None
    if not target.is_relative_to(root.resolve()):
        raise ValueError("leaves data.root")
    if not is_file:
        raise ValueError("does not exist" if not target.exists() else "is not a file")
    return name


def read_metadata(root: Path) -> tuple[dict[str, list[Caption]], list[Issue]]:
    """Read `metadata.json` of a data root: for each file the captions given to it, and the issues found."""
    captions: dict[str, list[Caption]] = {}
    issues: list[Issue] = []
    path = root / METADATA
    if not path.is_file():
        return captions, issues
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and thousands of brackets
        return captions, [Issue("error", "metadata-unreadable", METADATA, f"is not valid JSON in UTF-8: {error}")]
    if not isinstance(rows, list):
        return captions, [Issue("error", "metadata-unreadable", METADATA, "must be a list of rows")]
    for number, value in enumerate(rows):
        where = f"{METADATA} row {number}"
        try:
            row = MetadataRow.model_validate(value)
            file = resolve_inside(root, row.file_path)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "row"
            issues.append(Issue("error", "metadata-row", where, f"{key}: {first['msg'].lower()}"))
            continue
        except ValueError as error:
            issues.append(Issue("error", "metadata-path", where, f"file_path {row.file_path!r} {error}"))
            continue
        captions.setdefault(file, []).append(Caption(row.text.strip(), where))
        is_video = Path(file).suffix.lower() in DEMUXERS
        if row.type is not None and (row.type == "video") != is_video:
            issues.append(Issue("error", "metadata-type", where, f"{file} is not of type {row.type!r}"))
    return captions, issues


def read_sidecar(root: Path, source: Source) -> tuple[Caption | None, list[Issue]]:
    """Read the `.txt` beside a source: `clip.txt` for `clip.mp4`, `NAME.txt` for a pair."""
    name = str(PurePosixPath(source.path).with_suffix(".txt")) if source.kind == "video" else f"{source.name}.txt"
    path = root / name
    if not path.is_file():
        return None, []
    try:
        return Caption(path.read_text(encoding="utf-8-sig").strip(), name), []
    except UnicodeDecodeError:
        return None, [Issue("error", "sidecar-unreadable", name, "is not UTF-8 text: save it as UTF-8")]


def gather_captions(
    root: Path, sources: list[Source], content_ids: dict[str, str]
) -> tuple[dict[str, str], list[Issue]]:
    """One caption for each content id, from every place that names it.

    Args:
        root: the data root.
        sources: its clips and pairs.
        content_ids: content id of each source, by its name.

    Returns:
        Captions by content id, and the issues found: rows for files that are no source, duplicates, conflicts.
    """
    by_file, issues = read_metadata(root)
    given: dict[str, list[Caption]] = {}
    known = set()
    for source in sources:
        sidecar, found = read_sidecar(root, source)
        issues += found
        rows = [caption for path in source.paths for caption in by_file.get(path, [])]
        known |= set(source.paths)
        if len(rows) > 1:
            issues.append(Issue("warning", "duplicate-row", rows[1].where, f"{source.name} has {len(rows)} rows"))
        given.setdefault(content_ids[source.name], []).extend(rows + ([sidecar] if sidecar else []))
    for file in sorted(set(by_file) - known):
        where = by_file[file][0].where
        issues.append(Issue("warning", "row-without-source", where, f"{file} is no clip or image pair: row unused"))
    captions = {}
    for content_id, candidates in given.items():
        texts = sorted({caption.text for caption in candidates if caption.text})
        captions[content_id] = texts[0] if texts else ""
        if len(texts) > 1:
            places = " and ".join(caption.where for caption in candidates if caption.text)
            issues.append(Issue("error", "conflicting-captions", places, "give one content different captions"))
    for source in sources:
        if not captions[content_ids[source.name]]:
            issues.append(Issue("info", "no-caption", source.name, "has no caption"))
    return captions, issues

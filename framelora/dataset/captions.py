"""Captions and other columns of every content, from metadata files and `.txt` sidecars, and what is wrong with them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa

from framelora.dataset.metadata import FILES, Row, as_number, read_rows, read_text
from framelora.dataset.paths import Names, PathProblem, composed
from framelora.dataset.rules import Finding
from framelora.dataset.sources import Source
from framelora.files import column
from framelora.media.probe import DEMUXERS

# Other people's names of `text`, and what a spreadsheet makes of it.
CAPTION_COLUMNS = frozenset({"text", "caption", "captions", "prompt", "prompts", "description"})
SIDECAR = ".txt"  # in upper case too
SCHEMA = pa.schema(
    [
        column("content_id", pa.string(), "id of the content"),
        column("text", pa.string(), "its caption with trigger word, prefix and suffix; empty when it has none"),
        column("variants", pa.list_(pa.string()), "the same with its tags in other orders; the first is as written"),
    ]
)
COLUMNS_SCHEMA = pa.schema(
    [
        column("content_id", pa.string(), "id of the content"),
        column("column", pa.string(), "name of a metadata column other than path, text and type"),
        column("value", pa.string(), "its value as text"),
        column("number", pa.float64(), "the number that the value says; NaN when it says none"),
    ]
)


@dataclass(frozen=True)
class Caption:
    """A caption and where it stands."""

    text: str
    where: str


@dataclass
class Gathered:
    """What all metadata says, by content id.

    Attributes:
        captions: one caption for each content that has any; its text may be empty.
        columns: values of other columns, as text.
        findings: rows that can't be used, duplicates, conflicts.
    """

    captions: dict[str, Caption] = field(default_factory=dict)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def metadata_files(names: Iterable[str]) -> list[str]:
    """The metadata files among the files of a data root, at any depth."""
    return sorted(name for name in names if PurePosixPath(name).name.lower() in FILES)


def read_metadata(root: Path, names: Iterable[str]) -> tuple[dict[str, list[Row]], list[Finding]]:
    """Read every metadata file of a data root: for each file the rows that name it, and what is wrong with the rest."""
    files = Names(root, names)
    rows: dict[str, list[Row]] = {}
    findings: list[Finding] = []
    for metadata in metadata_files(files.names):
        usable = []
        for row in read_rows(root, metadata):
            if isinstance(row, Finding):
                findings.append(row)
                continue
            usable.append(row)
            try:
                file = files.find(row.file_path)
            except PathProblem as problem:
                findings.append(Finding(problem.rule, row.where, f"{row.file_path!r} {problem}"))
                continue
            rows.setdefault(file, []).append(row)
            is_video = PurePosixPath(file).suffix.lower() in DEMUXERS
            if row.type is not None and (row.type == "video") != is_video:
                findings.append(Finding("wrong-type", row.where, f"{file} is not of type {row.type!r}"))
        findings += misnamed_captions(metadata, usable)
    return rows, findings


def misnamed_captions(metadata: str, rows: list[Row]) -> list[Finding]:
    """A finding for each column of a metadata file without `text` that looks as if it held the captions."""
    if any(row.text is not None for row in rows):
        return []
    counts = Counter(name for row in rows for name in row.columns if name.strip().lower() in CAPTION_COLUMNS)
    return [
        Finding("caption-column", metadata, f"no row has `text`; {count} have {name!r}, which is no caption here")
        for name, count in sorted(counts.items())
    ]


def sidecars_of(source: Source, texts: Mapping[str, list[str]]) -> list[str]:
    """The `.txt` beside a source: `clip.txt` for `clip.mp4`, `NAME.txt` for a pair; `.TXT` too. A name of exactly the
    same spelling goes before one in another Unicode form.

    Args:
        source: the source.
        texts: files of that suffix, by their composed path without it.
    """
    stem = source.name if source.end_path else str(PurePosixPath(source.path).with_suffix(""))
    alike = texts.get(composed(stem), [])
    return [name for name in alike if name[: -len(SIDECAR)] == stem] or alike


def read_sidecar(root: Path, name: str) -> Caption | Finding:
    """Read a sidecar."""
    text = read_text(root / name, name)
    return text if isinstance(text, Finding) else Caption(text.strip(), name)


def gather(root: Path, names: Iterable[str], sources: list[Source], content_ids: Mapping[str, str]) -> Gathered:
    """One caption and one value of each column for each content, from every place that names it.

    Args:
        root: the data root.
        names: its files.
        sources: its clips, images and pairs.
        content_ids: content id of each source, by its name.
    """
    found = Gathered()
    names = set(names)
    by_file, found.findings = read_metadata(root, names)
    captions: dict[str, list[Caption]] = defaultdict(list)
    values: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # value -> place, by content and column
    texts: dict[str, list[str]] = defaultdict(list)
    for name in sorted(name for name in names if name.lower().endswith(SIDECAR)):
        texts[composed(name[: -len(SIDECAR)])].append(name)
    sidecars, known = set(), set()
    for source in sources:
        content_id = content_ids[source.name]
        rows = [row for path in source.paths for row in by_file.get(path, [])]
        known |= set(source.paths)
        if len(rows) > 1:
            places = " and ".join(row.where for row in rows)
            found.findings.append(Finding("duplicate-row", rows[1].where, f"{source.name} has {len(rows)}: {places}"))
        captions[content_id] += [Caption(row.text, row.where) for row in rows if row.text is not None]
        for row in rows:
            for name, value in row.columns.items():
                values[content_id, name].setdefault(value, row.where)
        for sidecar in sidecars_of(source, texts):
            sidecars.add(sidecar)
            caption = read_sidecar(root, sidecar)
            if isinstance(caption, Finding):
                found.findings.append(caption)
            else:
                captions[content_id].append(caption)
    for file in sorted(set(by_file) - known):
        message = f"{file} is no clip, image or image pair that is used"
        found.findings += [Finding("row-without-source", row.where, message) for row in by_file[file]]
    for name in sorted({name for alike in texts.values() for name in alike} - sidecars):
        found.findings.append(Finding("stray-sidecar", name, "stands beside no clip, image or image pair of its name"))
    _merge(found, captions, values)
    return found


def _merge(found: Gathered, captions: dict[str, list[Caption]], values: dict[tuple[str, str], dict[str, str]]) -> None:
    """Settle on one caption and one value each; conflicts name every place."""
    for content_id, candidates in captions.items():
        distinct = {caption.text: caption for caption in reversed(candidates) if caption.text}
        if distinct:
            found.captions[content_id] = distinct[min(distinct)]
        elif candidates:
            found.captions[content_id] = candidates[0]
        if len(distinct) > 1:
            places = " and ".join(caption.where for caption in candidates if caption.text)
            found.findings.append(Finding("conflicting-captions", places, "give one content different captions"))
    for (content_id, name), places_by_value in sorted(values.items()):
        found.columns.setdefault(content_id, {})[name] = min(places_by_value)
        if len(places_by_value) > 1:
            said = " and ".join(f"{value!r}" for value in places_by_value)
            where = " and ".join(places_by_value.values())
            found.findings.append(Finding("conflicting-columns", where, f"column {name!r} of one content is {said}"))


def column_rows(columns: Mapping[str, Mapping[str, str]]) -> list[dict[str, object]]:
    """Rows of `COLUMNS_SCHEMA`, in order."""
    return [
        {"content_id": content_id, "column": name, "value": value, "number": as_number(value)}
        for content_id, named in sorted(columns.items())
        for name, value in sorted(named.items())
    ]

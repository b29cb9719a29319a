"""Rows of metadata files: JSON lists, JSON lines, CSV and Parquet, read into one form."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from framelora.console import one_line
from framelora.dataset.rules import Finding, unopened

FILES = ("metadata.json", "metadata.jsonl", "metadata.csv", "metadata.parquet")
# The seed guides' word, and that of Hugging Face's VideoFolder.
PATH_COLUMNS = ("file_path", "file_name")

# What a reader yields: where a row stands and its values, or what is wrong there.
Raw = Iterator[tuple[str, Any] | Finding]


def _whole_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair: no file can be named or written so") from None
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]


class Schema(BaseModel):
    """The known columns of a row. Others are kept as they are, for the filters of `pair`."""

    model_config = ConfigDict(extra="allow", strict=True)

    file_path: Text
    text: Text = ""
    type: Literal["video", "image"] | None = None


@dataclass(frozen=True)
class Row:
    """A row of a metadata file.

    Attributes:
        where: metadata file and row or line, for messages.
        file_path: the path as written, with the metadata file's own folder in front.
        text: the caption, stripped; None when the row has none.
        type: video or image, where the row says so.
        columns: the other columns, as text.
    """

    where: str
    file_path: str
    text: str | None
    type: str | None
    columns: dict[str, str] = field(default_factory=dict)


def read_rows(root: Path, name: str) -> Iterator[Row | Finding]:
    """Read one metadata file, row by row; a bad row is a finding and the others are read all the same.

    Args:
        root: the data root.
        name: the metadata file under it; paths in it are relative to its folder, as in Hugging Face's VideoFolder.
    """
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    for raw in readers[PurePosixPath(name).suffix.lower()](root / name, name):
        yield raw if isinstance(raw, Finding) else _checked(*raw, folder=str(PurePosixPath(name).parent))


def _checked(where: str, values: Any, folder: str) -> Row | Finding:
    """A row under the schema. A path keeps what is wrong with it: who knows the files says so."""
    if isinstance(values, dict):
        given = [column for column in PATH_COLUMNS if column in values]
        if len(given) > 1:
            return Finding("metadata-row", where, f"has both {' and '.join(given)}")
        values = {"file_path" if column in given else column: value for column, value in values.items()}
    try:
        row = Schema.model_validate(values)
        columns = {str(name): as_text(value) for name, value in (row.model_extra or {}).items() if value is not None}
        _whole_characters("".join([*columns, *columns.values()]))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "row"
        return Finding("metadata-row", where, f"{key}: {first['msg'].lower()}")
    except (ValueError, RecursionError) as error:
        return Finding("metadata-row", where, f"a column {error}")
    inside = folder in ("", ".") or row.file_path.startswith("/") or not row.file_path.strip()
    path = row.file_path if inside or "://" in row.file_path else f"{folder}/{row.file_path}"
    return Row(where, path, row.text.strip() if "text" in values else None, row.type, columns)


def as_text(value: Any) -> str:
    """A value of an extra column as text: strings as they are, the others as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def as_number(text: str) -> float:
    """The number that a column's text says; NaN when it says none. `true` and `false` are 1 and 0."""
    if text in ("true", "false"):
        return float(text == "true")
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def read_text(path: Path, name: str) -> str | Finding:
    """A text file as UTF-8, whatever ends its lines; a byte order mark is allowed."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        return Finding("metadata-unreadable", name, unopened(error))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return Finding("encoding", name, f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x})")


def _json(path: Path, name: str) -> Raw:
    text = read_text(path, name)
    if isinstance(text, Finding):
        yield text
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and thousands of brackets
        yield Finding("metadata-unreadable", name, f"is not valid JSON: {error}")
        return
    if not isinstance(rows, list):
        yield Finding("metadata-unreadable", name, "must be a list of rows")
        return
    yield from ((f"{name} row {number}", row) for number, row in enumerate(rows))


def _json_lines(path: Path, name: str) -> Raw:
    text = read_text(path, name)
    if isinstance(text, Finding):
        yield text
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{name} line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Finding("metadata-row", f"{name} line {number}", f"is not valid JSON: {error}")


def _csv(path: Path, name: str) -> Raw:
    """Comma-separated, quoted as spreadsheets do; an empty cell is no value."""
    text = read_text(path, name)
    if isinstance(text, Finding):
        yield text
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header) or not set(PATH_COLUMNS) & set(header):
            yield Finding("metadata-unreadable", name, "its first line must name the columns, file_path among them")
            return
        start = reader.line_num + 1
        for cells in reader:
            where, start = f"{name} line {start}", reader.line_num + 1
            if len(cells) == len(header):
                yield where, {key: cell for key, cell in zip(header, cells, strict=True) if cell != ""}
            elif cells:
                yield Finding("metadata-row", where, f"has {len(cells)} cells; the first line has {len(header)}")
    except csv.Error as error:
        yield Finding("metadata-unreadable", name, f"line {reader.line_num}: {error}")


def _parquet(path: Path, name: str) -> Raw:
    """A null is no value."""
    try:
        with path.open("rb") as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
    except PermissionError as error:
        yield Finding("metadata-unreadable", name, unopened(error))
        return
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        reason = one_line(error)[:160]
        yield Finding("metadata-unreadable", name, f"is not a Parquet table that can be read ({reason})")
        return
    if len(set(table.column_names)) != table.num_columns:
        yield Finding("metadata-unreadable", name, "has several columns of one name")
        return
    columns = {}
    for key, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns[key] = column.to_pylist()
        except (ValueError, OverflowError) as error:  # Arrow's dates and durations reach further than Python's
            reason = one_line(error)[:160]
            yield Finding("metadata-unreadable", name, f"column {key!r} holds a value out of range ({reason})")
            return
    for number in range(table.num_rows):
        row = {key: values[number] for key, values in columns.items()}
        yield f"{name} row {number}", {key: value for key, value in row.items() if value is not None}

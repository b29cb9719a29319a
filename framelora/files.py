"""Files that are either whole or not there, and the digests that name their content."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from framelora.console import UserError, relative


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under another name in the same folder, flush it to disk, and rename it into place.

    A reader sees the old file or the new one, never a part. The rename also gives the path a new inode, so a file
    that is hard-linked elsewhere (DVC's cache) is replaced and not edited.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people to read and diff: sorted, indented, one trailing newline."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; `UserError` when it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{relative(path)} is missing: run `dvc repro`, which makes it") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{relative(path)} is not valid JSON ({error}): delete it and run `dvc repro`") from None


def column(name: str, dtype: pa.DataType, about: str, unit: str = "") -> pa.Field:
    """A column of a table's schema; its meaning and unit travel in the Parquet file."""
    metadata = {"about": about} | ({"unit": unit} if unit else {})
    return pa.field(name, dtype, nullable=True, metadata=metadata)


def write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows as Parquet under a schema. Equal rows give equal bytes (one machine, one pyarrow)."""
    table = pa.Table.from_pylist(rows, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_table(path: Path) -> pd.DataFrame:
    """Read a Parquet table; `UserError` when it is missing or damaged."""
    try:
        return pq.read_table(path, page_checksum_verification=True).to_pandas()
    except FileNotFoundError:
        raise UserError(f"{relative(path)} is missing: run `dvc repro`, which makes it") from None
    except (pa.ArrowException, OSError, ValueError) as error:  # what pyarrow raises on flipped bits; a torn file
        raise UserError(f"{relative(path)} is damaged ({error}): delete it and run `dvc repro`") from None


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder hold exactly these files (path inside the folder -> content), each written atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_bytes(folder / name, data)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()


def file_digests(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Digests of files by their paths inside a folder."""
    return {path.relative_to(root).as_posix(): file_digest(path) for path in sorted(paths)}


def folder_digests(folder: Path) -> dict[str, str]:
    """Digest of every file of a folder, by its path inside."""
    return file_digests((path for path in folder.rglob("*") if path.is_file()), folder)

"""Looking after a store: what is in it, what is broken, what nobody needs any more."""

from __future__ import annotations

import errno
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from framelora.cells.store import Store
from framelora.console import UserError, relative

INDEX_FOLDERS = ("data", "models", "reports")
STALE_TEMPORARY = 24 * 3600.0  # seconds; a younger one may belong to a writer at work


@dataclass(frozen=True)
class CellFile:
    """A cell as the file system shows it; nothing of it has been checked."""

    kind: str
    key: str
    path: Path
    num_bytes: int
    last_used: float  # seconds since 1970


def cell_files(store: Store) -> Iterator[CellFile]:
    """All cells of a store, in order of their paths."""
    for path in sorted(store.root.rglob("*.cell")):
        try:
            stat = path.stat()
        except FileNotFoundError:  # removed by another process meanwhile
            continue
        kind = path.parent.parent.relative_to(store.root).as_posix()
        yield CellFile(kind, path.stem, path, stat.st_size, stat.st_mtime)


def summary(store: Store) -> dict[str, tuple[int, int]]:
    """For each kind of cell: how many, and their bytes."""
    count: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for cell in cell_files(store):
        count[cell.kind] += 1
        num_bytes[cell.kind] += cell.num_bytes
    return {kind: (count[kind], num_bytes[kind]) for kind in sorted(count)}


def damaged(store: Store, *, repair: bool) -> tuple[int, list[str]]:
    """Read every cell. With `repair` damaged ones are removed (their stages refill them); otherwise they stay.

    Returns:
        How many cells were read, and a line for each damaged one.
    """
    checked = 0
    broken = []
    for cell in cell_files(store):
        checked += 1
        reason = store.check(cell.kind, cell.key)
        if reason is not None:
            broken.append(f"{cell.kind} {cell.key[:12]}: {reason}")
            if repair:
                cell.path.unlink(missing_ok=True)
    return checked, broken


def named_cells(checkout: Path) -> set[str]:
    """Keys that the indexes in a checkout name: `cell` columns of Parquet tables, `cell` values of JSON files.

    Raises:
        OSError: a folder or a file can't be read, so that what it names is unknown.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    keys: set[str] = set()
    for folder in INDEX_FOLDERS:
        for parent, _, names in os.walk(checkout / folder, onerror=fail):
            for name in names:
                if name.endswith((".parquet", ".json")):
                    keys |= cells_in(Path(parent, name))
    return keys


def cells_in(path: Path) -> set[str]:
    """Keys that one file names: none when it is no index of ours (somebody's own file, or one being made)."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".parquet":
                if "cell" not in pq.read_schema(file).names:
                    return set()
                return set(pq.read_table(file, columns=["cell"]).column("cell").to_pylist())
            value = json.load(file)
    except OSError as error:
        if error.errno in (None, errno.ENOENT):  # pyarrow can't make sense of it; or a stage has just taken it away
            return set()
        raise
    except (pa.ArrowException, ValueError):
        return set()
    return {value["cell"]} if isinstance(value, dict) and isinstance(value.get("cell"), str) else set()


def registered_checkouts(store: Store) -> tuple[list[Path], list[Path]]:
    """The checkouts that use a store, and the notes of those that are gone.

    Raises:
        UserError: a note is damaged.
    """
    checkouts, gone = [], []
    for note in sorted((store.root / "checkouts").glob("*.json")):
        try:
            checkout = Path(json.loads(note.read_bytes())["path"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{relative(note)} is damaged, so a checkout's indexes are unknown: delete it, run a stage in each "
                "checkout that uses this store, then run again; nothing was dropped"
            ) from None
        if checkout.is_dir():
            checkouts.append(checkout)
        else:
            gone.append(note)
    return checkouts, gone


def collect_garbage(store: Store, *, days: float, dry_run: bool) -> tuple[int, int, list[Path]]:
    """Drop the cells that no index of a registered checkout names and nothing has used for some days.

    Returns:
        Cells dropped, their bytes, and the checkouts whose indexes were honoured.

    Raises:
        UserError: what some checkout names can't be read. Nothing is dropped then.
    """
    try:
        checkouts, gone = registered_checkouts(store)
        needed = set().union(*(named_cells(checkout) for checkout in checkouts))
    except OSError as error:
        raise UserError(
            f"can't read {error.filename} ({error.strerror}), so the cells it names are unknown: "
            "run this as a user who can; nothing was dropped"
        ) from error
    now = time.time()
    dropped = num_bytes = 0
    for cell in cell_files(store):
        if cell.key not in needed and now - cell.last_used >= days * 24 * 3600:
            dropped += 1
            num_bytes += cell.num_bytes
            if not dry_run:
                cell.path.unlink(missing_ok=True)
    if not dry_run:
        for note in gone:
            note.unlink(missing_ok=True)
        for temporary in store.root.rglob(".tmp-*"):
            try:
                if now - temporary.stat().st_mtime > STALE_TEMPORARY:
                    temporary.unlink()
            except FileNotFoundError:  # its writer has just renamed it
                continue
    return dropped, num_bytes, checkouts

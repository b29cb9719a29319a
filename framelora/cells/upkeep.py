"""Looking after a store: what is in it, what is broken, what nobody needs any more."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from framelora.cells.store import Store

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
    """Keys that the indexes in a checkout name: `cell` columns of Parquet tables, `cell` values of JSON files."""
    keys: set[str] = set()
    for folder in INDEX_FOLDERS:
        for path in (checkout / folder).rglob("*.parquet"):
            try:
                names = pq.read_schema(path).names
                if "cell" in names:
                    keys |= set(pq.read_table(path, columns=["cell"]).column("cell").to_pylist())
            except pa.ArrowInvalid:  # somebody's own file, or one being made: it names no cell of ours
                continue
        for path in (checkout / folder).rglob("*.json"):
            try:
                value = json.loads(path.read_text())
            except (UnicodeDecodeError, json.JSONDecodeError):
                continue
            if isinstance(value, dict) and isinstance(value.get("cell"), str):
                keys.add(value["cell"])
    return keys


def collect_garbage(store: Store, *, days: float, dry_run: bool) -> tuple[int, int, list[Path]]:
    """Drop the cells that no index of a registered checkout names and nothing has used for some days.

    Returns:
        Cells dropped, their bytes, and the checkouts whose indexes were honoured.
    """
    checkouts: list[Path] = []
    for note in sorted((store.root / "checkouts").glob("*.json")):
        checkout = Path(json.loads(note.read_text())["path"])
        if checkout.is_dir():
            checkouts.append(checkout)
        elif not dry_run:
            note.unlink(missing_ok=True)
    needed = set().union(*(named_cells(checkout) for checkout in checkouts))
    now = time.time()
    dropped = num_bytes = 0
    for cell in cell_files(store):
        if cell.key not in needed and now - cell.last_used >= days * 24 * 3600:
            dropped += 1
            num_bytes += cell.num_bytes
            if not dry_run:
                cell.path.unlink(missing_ok=True)
    if not dry_run:
        for temporary in store.root.rglob(".tmp-*"):
            if now - temporary.stat().st_mtime > STALE_TEMPORARY:
                temporary.unlink(missing_ok=True)
    return dropped, num_bytes, checkouts

"""The cell store: one file a unit of heavy work, named by a digest of everything that can change its bytes.

A cell file is: a magic line, the header's length (8 bytes, little endian), the header (JSON), the header's SHA-256
(32 bytes), the payload. The header holds the payload's digest, so a torn, truncated or flipped file is always noticed:
it is reported, removed and computed again, never used. This folder's modules are the only writers of a store.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from framelora import files
from framelora.console import UserError, relative, warn
from framelora.digest import canonical_json, sha256

MAGIC = b"framelora cell 1\n"
TOUCH_AFTER = 3600.0  # seconds; a use is noted at most this often, to spare shared disks


@dataclass(frozen=True)
class Cell:
    """One planned unit of work.

    Attributes:
        kind: `stage/what`, for example `encode/latents`.
        unit: id of the thing it is about (a clip, a shot, a pair); it decides the shard and is no part of the key.
        inputs: everything that can change the cell's bytes, as JSON values.
    """

    kind: str
    unit: str
    inputs: Mapping[str, Any] = field(hash=False)

    @cached_property
    def key(self) -> str:
        """SHA-256 over kind and inputs (64 hex digits)."""
        return sha256(canonical_json({"kind": self.kind, "inputs": self.inputs}).encode())


@dataclass(frozen=True)
class Stored:
    """A cell's header: what an index records of it."""

    kind: str
    key: str
    unit: str
    digest: str  # SHA-256 of the payload
    num_bytes: int  # length of the payload
    meta: dict[str, Any]  # small JSON beside the payload: shapes, time stamps, facts


class MissingCell(Exception):
    """The store has no sound cell of this key (a damaged one has been reported and removed)."""


class Damaged(Exception):
    """Raised inside this module: the file is no whole cell; says why."""


class Store:
    """A folder of cells, shared by any number of processes and checkouts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: str, key: str) -> Path:
        """Where a cell lies: `kind/first two digits/key.cell`."""
        return Path(f"{self.root}/{kind}/{key[:2]}/{key}.cell")  # once parsed: this is asked thousands of times

    def put(self, cell: Cell, payload: bytes, meta: Mapping[str, Any] | None = None) -> Stored:
        """Write a cell; two writers of one key do no harm.

        Raises:
            UserError: the disk is full or the store can't be written. No part of the cell stays behind.
        """
        stored = Stored(cell.kind, cell.key, cell.unit, sha256(payload), len(payload), dict(meta or {}))
        header = canonical_json({**vars(stored), "inputs": cell.inputs}).encode()
        head = MAGIC + len(header).to_bytes(8, "little") + header + hashlib.sha256(header).digest()
        path = self.path(cell.kind, cell.key)
        try:
            files.write_bytes(path, head + payload)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"the disk of {relative(self.root)} is full (writing a {cell.kind} cell of {len(payload)} bytes): "
                    "free space or set FRAMELORA_CELLS to a larger disk, then run again; finished cells are kept"
                ) from None
            raise unwritable(self.root, error) from error
        return stored

    def peek(self, kind: str, key: str) -> Stored | None:
        """A cell's header, checked, with the file's length compared; None when there is no sound one.

        The payload is not read: damage inside it is found by `read`.
        """
        try:
            with self._open(kind, key) as file:
                stored = self._header(file, kind, key)
                note_use(file)
        except (FileNotFoundError, Damaged):
            return None
        return stored

    def read(self, kind: str, key: str) -> tuple[Stored, bytes]:
        """A cell's header and payload, both checked.

        Raises:
            MissingCell: there is none, or it was damaged.
        """
        try:
            with self._open(kind, key) as file:
                stored, payload = self._load(file, kind, key)
                note_use(file)
        except (FileNotFoundError, Damaged):
            raise MissingCell(f"{kind} {key}") from None
        return stored, payload

    def check(self, kind: str, key: str) -> str | None:
        """Why a cell is damaged, or None when it is whole. Nothing is removed."""
        try:
            with self.path(kind, key).open("rb") as file:
                self._load(file, kind, key)
        except Damaged as damage:
            return str(damage)
        except FileNotFoundError:
            return None  # another process took it away
        return None

    @contextmanager
    def _open(self, kind: str, key: str) -> Iterator[BinaryIO]:
        """Open a cell's file; when it turns out to be damaged, report it and take it away.

        That happens while the file is still open: once it is closed, a good file that another process has put in its
        place meanwhile may have the same inode.
        """
        with self.path(kind, key).open("rb") as file:
            try:
                yield file
            except Damaged as damage:
                self._discard(file, kind, key, damage)
                raise

    def _load(self, file: BinaryIO, kind: str, key: str) -> tuple[Stored, bytes]:
        """Read and check an open cell file."""
        stored = self._header(file, kind, key)
        payload = file.read()
        if sha256(payload) != stored.digest:
            raise Damaged("its bytes differ from their digest")
        return stored, payload

    def _header(self, file: BinaryIO, kind: str, key: str) -> Stored:
        """Read and check the head of an open cell file; the file is left at its payload."""
        size = os.fstat(file.fileno()).st_size
        if file.read(len(MAGIC)) != MAGIC:
            raise Damaged("it does not begin as a cell")
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            raise Damaged("its header is torn")
        header = file.read(length)
        if hashlib.sha256(header).digest() != file.read(32):
            raise Damaged("its header is torn or changed")
        fields = json.loads(header)
        if not Stored.__dataclass_fields__.keys() <= fields.keys():
            raise Damaged("another version of framelora wrote it")
        stored = Stored(**{name: fields[name] for name in Stored.__dataclass_fields__})
        if (stored.kind, stored.key) != (kind, key):
            raise Damaged(f"it belongs to {stored.kind} {stored.key[:12]}")
        if size != file.tell() + stored.num_bytes:
            raise Damaged("it is cut off or too long")
        return stored

    def _discard(self, file: BinaryIO, kind: str, key: str, damage: Damaged) -> None:
        """Report a damaged cell and take it away, unless another process has already replaced it."""
        path = self.path(kind, key)
        fate = "removed, it will be computed again"
        try:
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                path.unlink()
        except FileNotFoundError:
            pass  # another process took it away
        except OSError as error:
            fate = f"not used, but it can't be removed ({error.strerror})"
        warn(f"cells: {kind} {key[:12]} is damaged ({damage}): {fate}")


def note_use(file: BinaryIO) -> None:
    """Set an open cell file's mtime, which `cells gc` reads as the last use. Nothing else looks at it."""
    try:
        if time.time() - os.fstat(file.fileno()).st_mtime > TOUCH_AFTER:
            os.utime(file.fileno())
    except OSError:
        pass  # the store is shared read-only: the note is a courtesy


def unwritable(root: Path, error: OSError) -> UserError:
    """What to tell the user when a store can't be written."""
    return UserError(
        f"can't write to the cell store {relative(root)} ({error.strerror}): "
        "make it writable, or set FRAMELORA_CELLS to a folder that is"
    )


def repository_root() -> Path:
    """The repository (working directory) that owns the store and the resume states.

    A copy of it that `dvc exp run --temp` or `--queue` makes, under `.dvc/tmp/exps/`, shares those of the repository.
    """
    for parent in Path.cwd().parents:
        if parent.name == "exps" and parent.parent.name == "tmp" and parent.parent.parent.name == ".dvc":
            return parent.parent.parent.parent
    return Path.cwd()


def open_store() -> Store:
    """The store of this checkout: `.cells/` of the repository, or where `FRAMELORA_CELLS` says.

    The checkout is registered in it, so that `cells gc` honours its indexes.
    """
    store = Store(repository_root() / (os.environ.get("FRAMELORA_CELLS") or ".cells"))
    checkout = str(Path.cwd())
    note = store.root / "checkouts" / f"{sha256(checkout.encode())[:16]}.json"
    if not note.exists():
        try:
            files.write_json(note, {"path": checkout})
        except OSError as error:
            raise unwritable(store.root, error) from error
    return store

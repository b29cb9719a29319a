"""Paths that people write in metadata, as names of files under the data root. Nothing outside of it is ever named."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath


class PathProblem(ValueError):
    """A path that can't be used. `rule` is the rule of `rules.RULES` that it breaks."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


class Names:
    """The files under a data root, found by any spelling of their path."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        """
        Args:
            root: the data root.
            names: its files, relative to it, with /.
        """
        self.root = root
        self.names = set(names)
        self.spellings: dict[str, list[str]] = {}
        for name in self.names:
            self.spellings.setdefault(composed(name), []).append(name)

    def find(self, written: str) -> str:
        """The name of the file that a path means.

        A name is first taken as written, then by its composed form: a file that macOS named in NFD is found by the NFC
        that an editor wrote. A path that goes through a link is the file's own name where that is one of ours.

        Raises:
            PathProblem: it is absolute, an address, leaves the root (also through a link), or names no regular file.
        """
        name = tidy(written)
        if name in self.names:
            return name
        alike = self.spellings.get(composed(name), [])
        if len(alike) == 1:
            return alike[0]
        found = resolve_inside(self.root, written)
        own = (self.root / found).resolve().relative_to(self.root.resolve()).as_posix()
        return own if own in self.names else found


def composed(name: str) -> str:
    """A name in the one form (NFC) in which those that look alike are equal."""
    return unicodedata.normalize("NFC", name)


def tidy(written: str) -> str:
    """A written path without `.`, `..` and doubled slashes; the file system is not asked."""
    if "\0" in written or not written.strip():
        raise PathProblem("path-missing", "is not a path")
    if "://" in written:
        raise PathProblem("path-not-relative", "is an address: only files under data.root can be used")
    if written.startswith("/") or "\\" in written or re.match("[A-Za-z]:/", written):
        raise PathProblem("path-not-relative", "is absolute or uses backslashes: write it relative, with /")
    parts: list[str] = []
    for part in PurePosixPath(written).parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            raise PathProblem("path-outside", "leaves data.root")
    return "/".join(parts)


def resolve_inside(root: Path, written: str) -> str:
    """A written path as a path under the data root, links followed to see where they lead; a link keeps its own name.

    Raises:
        PathProblem: as `Names.find` does.
    """
    name = tidy(written)
    try:
        os.lstat(root / name)
        target = (root / name).resolve()
        is_file = target.is_file()
    except (FileNotFoundError, NotADirectoryError):
        raise PathProblem("path-missing", "does not exist") from None
    except OSError as error:
        raise PathProblem("path-missing", f"can't be looked up ({error.strerror})") from None
    except RuntimeError:  # until Python 3.13
        raise PathProblem("path-missing", "is a link that leads to itself") from None
    if not target.is_relative_to(root.resolve()):
        raise PathProblem("path-outside", "leaves data.root")
    if not is_file:
        raise PathProblem("path-missing", "does not exist" if not target.exists() else "is not a file")
    return name

"""The files under `data.root`: which are clips and image pairs, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from framelora.console import UserError
from framelora.digest import sha256
from framelora.files import column, file_digest, write_json
from framelora.media.probe import DEMUXERS, IMAGE_FORMATS, Facts

SCHEMA = pa.schema(
    [
        column("name", pa.string(), "path of the clip under data.root; for an image pair without _start and extension"),
        column("kind", pa.string(), "video or image_pair"),
        column("content_id", pa.string(), "id of the content: 16 hex digits; the same under every name"),
        column("path", pa.string(), "the video, or the pair's start image, under data.root"),
        column("digest", pa.string(), "SHA-256 of that file"),
        column("end_path", pa.string(), "the pair's end image, under data.root; empty for a video"),
        column("end_digest", pa.string(), "SHA-256 of that file; empty for a video"),
        column("width", pa.int32(), "width as displayed", "pixels"),
        column("height", pa.int32(), "height as displayed", "pixels"),
        column("num_frames", pa.int64(), "frames by the container's count; 0 when it has none", "frames"),
        column("fps", pa.float64(), "average rate; 0 for an image pair", "frames/s"),
        column("duration", pa.float64(), "length by the container; 0 for an image pair", "s"),
        column("codec", pa.string(), "codec of the video stream, or image format"),
        column("rotation", pa.int32(), "how players turn the stored picture, counter-clockwise", "degrees"),
    ]
)


@dataclass(frozen=True)
class Source:
    """A clip or an image pair, by the names its files have under `data.root`."""

    name: str
    kind: str  # "video" or "image_pair"
    path: str
    end_path: str = ""

    @property
    def paths(self) -> list[str]:
        """Its one or two files."""
        return [self.path, self.end_path] if self.end_path else [self.path]

    def content_id(self, digests: dict[str, str]) -> str:
        """Id of the content, from the digests of its files: the same under every name."""
        return sha256("+".join([self.kind, *(digests[path] for path in self.paths)]).encode())[:16]


def walk(root: Path) -> list[str]:
    """All files under a folder as sorted POSIX paths relative to it; hidden files and folders are left out.

    Raises:
        UserError: a name is not UTF-8, so that no table could hold it.
    """
    found = []
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            try:
                name.as_posix().encode()
            except UnicodeEncodeError:
                raise UserError(f"data.root: the name {name.as_posix()!r} is not UTF-8: rename the file") from None
            found.append(name.as_posix())
    return sorted(found)


def group(paths: list[str]) -> tuple[list[Source], list[str], list[str]]:
    """Sort files into sources.

    Returns:
        The videos and image pairs by name; start or end images whose other half is missing or that stand for the same
        half of the same pair as another; single images.
    """
    sources = [Source(path, "video", path) for path in paths if Path(path).suffix.lower() in DEMUXERS]
    halves: dict[tuple[str, str], str] = {}
    widows, single = [], []
    for path in paths:
        if Path(path).suffix.lower() not in IMAGE_FORMATS:
            continue
        stem = path[: -len(Path(path).suffix)]
        name, _, half = stem.rpartition("_")
        if half.lower() in ("start", "end") and name and not name.endswith("/"):
            if halves.setdefault((name, half.lower()), path) != path:
                widows.append(path)
        else:
            single.append(path)
    for (name, half), path in halves.items():
        other = halves.get((name, "end" if half == "start" else "start"))
        if other is None:
            widows.append(path)
        elif half == "start":
            sources.append(Source(name, "image_pair", path, other))
    return sorted(sources, key=lambda source: source.name), sorted(widows), single


class DigestCache:
    """SHA-256 of files, computed once and trusted until size, modification time or inode change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            known = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            known = {}  # a lost cache costs one reading of the files
        # So does one of another shape.
        entries = known.items() if isinstance(known, dict) else ()
        self.known: dict[str, list[str | int]] = {name: entry for name, entry in entries if isinstance(entry, list)}
        self.used: dict[str, list[str | int]] = {}

    def digest(self, path: Path) -> str:
        """Hex digest of a file."""
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]
        known = self.known.get(str(path))
        entry: list[str | int] = known if known and known[1:] == stamp else [file_digest(path), *stamp]
        self.used[str(path)] = entry
        return str(entry[0])

    def save(self) -> None:
        """Keep what is known for the next run; files that were not asked for are forgotten."""
        write_json(self.path, self.used)


def source_rows(
    sources: list[Source], digests: dict[str, str], facts: Callable[[str], Facts]
) -> Iterator[dict[str, object]]:
    """Rows of `sources.parquet`, in order of names."""
    for source in sources:
        first = facts(source.path)
        yield {
            "name": source.name,
            "kind": source.kind,
            "content_id": source.content_id(digests),
            "path": source.path,
            "digest": digests[source.path],
            "end_path": source.end_path,
            "end_digest": digests.get(source.end_path, ""),
            **vars(first),
        }

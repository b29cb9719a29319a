"""The files under `data.root`: which are clips, images and image pairs, and what is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from framelora.console import UserError, relative
from framelora.dataset.paths import composed
from framelora.dataset.rules import Finding
from framelora.digest import sha256
from framelora.files import column, file_digest, write_json
from framelora.media.probe import DEMUXERS, IMAGE_FORMATS, Facts

SCHEMA = pa.schema(
    [
        column("name", pa.string(), "path under data.root; for an image pair without _start and extension"),
        column("kind", pa.string(), "video, image or image_pair"),
        column("content_id", pa.string(), "id of the content: 16 hex digits; the same under every name"),
        column("path", pa.string(), "the video, the image, or the pair's start image, under data.root"),
        column("digest", pa.string(), "SHA-256 of that file"),
        column("end_path", pa.string(), "the pair's end image, under data.root; empty for others"),
        column("end_digest", pa.string(), "SHA-256 of that file; empty for others"),
        column("width", pa.int32(), "width as displayed", "pixels"),
        column("height", pa.int32(), "height as displayed", "pixels"),
        column("num_frames", pa.int64(), "frames by the container's count; 0 when it has none", "frames"),
        column("fps", pa.float64(), "average rate; 0 for images", "frames/s"),
        column("duration", pa.float64(), "length by the container; 0 for images", "s"),
        column("codec", pa.string(), "codec of the video stream, or image format"),
        column("rotation", pa.int32(), "how players turn the stored picture, counter-clockwise", "degrees"),
        column("pixel_format", pa.string(), "pixel format of the video stream, or mode of the image, with its alpha"),
        column("transfer", pa.string(), "HDR transfer function, pq or hlg; empty for standard range"),
        column("interlaced", pa.bool_(), "the first frame is interlaced"),
    ]
)


@dataclass(frozen=True)
class Source:
    """A clip, an image or an image pair, by the names its files have under `data.root`."""

    name: str
    kind: str  # "video", "image" or "image_pair"
    path: str
    end_path: str = ""

    @property
    def paths(self) -> list[str]:
        """Its one or two files."""
        return [self.path, self.end_path] if self.end_path else [self.path]

    def content_id(self, digests: Mapping[str, str]) -> str:
        """Id of the content, from the digests of its files: the same under every name."""
        return sha256("+".join([self.kind, *(digests[path] for path in self.paths)]).encode())[:16]


def scan(root: Path) -> tuple[list[str], list[Finding]]:
    """All files under a folder as sorted POSIX paths relative to it. Hidden files and folders, and what is neither a
    file nor a folder, are left out and named.

    Links to files inside of it count as files. Links that lead out of it are found and never followed.

    Raises:
        UserError: a name is not UTF-8, so that no table could hold it; a folder can't be read.
    """
    found: list[str] = []
    findings: list[Finding] = []
    inside = root.resolve()
    waiting = [("", root)]
    while waiting:
        prefix, folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UserError(f"{relative(folder)} can't be read ({error.strerror}): make it readable") from None
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.name.startswith("."):
                shown = os.fsencode(name).decode(errors="replace")
                findings.append(Finding("hidden-file", shown, "is hidden: not looked at"))
                continue
            try:
                name.encode()
            except UnicodeEncodeError:
                raise UserError(f"data.root: the name {name!r} is not UTF-8: rename the file") from None
            if entry.is_symlink() and (finding := _check_link(Path(entry.path), name, inside)):
                findings.append(finding)
            elif entry.is_dir():
                waiting.append((f"{name}/", Path(entry.path)))
            elif entry.is_file():
                found.append(name)
            else:
                findings.append(Finding("special-file", name, "is neither a file nor a folder: not opened"))
    return sorted(found), sorted(findings)


def _check_link(path: Path, name: str, inside: Path) -> Finding | None:
    """Why a link is not followed; None for one to a file inside the data root."""
    try:
        target = path.resolve()
        target.stat()
    except (OSError, RuntimeError):
        return Finding("broken-link", name, "is a link to nothing, or to itself")
    if not target.is_relative_to(inside):
        return Finding("link-outside", name, "is a link that leads out of data.root")
    return Finding("link-to-folder", name, "is a link to a folder") if target.is_dir() else None


def walk(root: Path) -> list[str]:
    """The files that `scan` finds."""
    return scan(root)[0]


def group(paths: Iterable[str], *, images: bool = False) -> tuple[list[Source], list[Finding]]:
    """Sort files into sources, by name; images that are no source are findings.

    Args:
        paths: files under the data root.
        images: whether single images are sources too.
    """
    sources: list[Source] = []
    findings: list[Finding] = []
    halves: dict[tuple[str, str], str] = {}
    for path in sorted(paths):
        suffix = PurePosixPath(path).suffix
        if suffix.lower() in DEMUXERS:
            sources.append(Source(path, "video", path))
        if suffix.lower() not in IMAGE_FORMATS:
            continue
        name, _, half = path[: -len(suffix)].rpartition("_")
        if half.lower() in ("start", "end") and name and not name.endswith("/"):
            if (first := halves.setdefault((name, half.lower()), path)) != path:
                findings.append(Finding("half-pair", path, f"stands for the same half as {first}"))
        elif images:
            sources.append(Source(path, "image", path))
        else:
            findings.append(Finding("single-image", path, "is neither _start nor _end: not used"))
    starts = {name: path for (name, half), path in halves.items() if half == "start"}
    ends = {name: path for (name, half), path in halves.items() if half == "end"}
    # A half whose name has no other of exactly its spelling may have one in another Unicode form.
    others = {composed(name): name for name in sorted(ends) if name not in starts}
    for name, path in sorted(starts.items()):
        other = ends.pop(name if name in ends else others.pop(composed(name), name), None)
        if other is None:
            findings.append(Finding("half-pair", path, "has no other half"))
        else:
            sources.append(Source(name, "image_pair", path, other))
    findings += [Finding("half-pair", path, "has no other half") for path in ends.values()]
    return sorted(sources, key=lambda source: source.name), findings


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

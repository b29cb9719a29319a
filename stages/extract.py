"""Decode every source once, find its shots, and keep their frames at the target rate and bucket size, lossless.

Reads data.root and data/sources.parquet. Writes data/frames.parquet (an index: the frames are cells) and
reports/extract/skipped.csv.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from framelora import files
from framelora.cells.fill import Computed, Filling, Shard
from framelora.cells.store import Cell, MissingCell, open_store
from framelora.console import UserError, command, say, warn
from framelora.dataset.pairs import SHOTS_SCHEMA
from framelora.digest import canonical_json
from framelora.media.buckets import allowed_sizes, nearest_bucket, upscale
from framelora.media.decode import decode_image, decode_video
from framelora.media.lossless import encode_frames
from framelora.media.probe import Limits, Unreadable
from framelora.media.shots import Cutting, Shot
from framelora.params import load_params
from framelora.schema.data import Data, Extract
from framelora.source import source_digest
from framelora.versions import versions

DECODING = {
    "code": source_digest("framelora.media.decode"),
    "versions": versions("av", "scenedetect-headless", "opencv-python-headless", "imageio-ffmpeg", "pillow"),
}
PACKING = {"code": source_digest("framelora.media.lossless"), "versions": versions("av")}


class Extraction:
    """Plans and computes the cells of one source after the other; remembers which could not be decoded."""

    def __init__(self, params: Extract, data: Data) -> None:
        self.params = params
        self.root = Path(data.root)
        self.limits = Limits(data.max_pixels, data.max_frames, data.max_seconds)
        self.sizes = {kind: allowed_sizes(params, kind) for kind in ("video", "image", "image_pair")}
        self.cutting = Cutting(
            params.detector,
            params.shot_threshold,
            params.min_shot_seconds,
            params.max_shot_seconds,
            params.black_level,
            params.trim_fades,
        )
        self.failed: dict[str, str] = {}

    def left_out(self, source: Any) -> str | None:
        """Why a readable source is not used, by the parameters; None when it is."""
        bucket = nearest_bucket(source.width, source.height, self.sizes[source.kind])
        factor = upscale(source.width, source.height, bucket)
        if factor <= self.params.max_upscale:
            return None
        return f"would be enlarged {factor:.1f} times; extract.max_upscale is {self.params.max_upscale:g}"

    def shots_cell(self, source: Any) -> Cell:
        """The cell that lists a source's shots. Everything that decides cuts and time stamps is in its key."""
        inputs = {
            "digests": [source.digest, source.end_digest],
            "suffix": Path(source.path).suffix.lower(),
            "fps": self.params.fps,
            "buckets": self.sizes[source.kind],
            "cuts": vars(self.cutting),
            "decoding": DECODING,
        }
        return Cell("extract/shots", source.content_id, inputs)

    def frames_cell(self, source: Any, shot: dict[str, object]) -> Cell:
        """The cell of one shot's frames. How the cut was found is not in its key: an equal shot is an equal cell."""
        inputs = {"digest": shot["digest"], "shot": shot, "decoding": DECODING, "packing": PACKING}
        return Cell("extract/frames", source.content_id, inputs)

    def decode(self, source: Any) -> Iterator[tuple[dict[str, object], Shot]]:
        """Each shot of a source with its facts: an image is a shot of one frame."""
        if source.kind != "video":
            for digest, path in ((source.digest, source.path), (source.end_digest, source.end_path)):
                if path:
                    shot = decode_image(self.root / path, self.sizes[source.kind], self.limits)
                    yield shot_facts(digest, shot), shot
            return
        path = self.root / source.path
        for shot in decode_video(
            path, target_fps=self.params.fps, buckets=self.sizes["video"], cutting=self.cutting, limits=self.limits
        ):
            yield shot_facts(source.digest, shot), shot

    def compute(self, filling: Filling, source: Any) -> Computed:
        """Decode a source; yields the frames of its shots that the store lacks, then the list of the shots."""
        shots = []
        try:
            for facts, shot in self.decode(source):
                cell = self.frames_cell(source, facts)
                if filling.store.peek(cell.kind, cell.key) is None:
                    yield cell, functools.partial(encode_frames, shot.frames), {}
                shots.append(facts)
        except Unreadable as reason:
            self.failed[source.path] = str(reason)
            return
        yield self.shots_cell(source), canonical_json(shots).encode(), {}


def shot_facts(digest: str, shot: Shot) -> dict[str, object]:
    """What an index tells of a shot; `digest` is its file's."""
    num_frames, height, width = shot.frames.shape[:3]
    return {
        "digest": digest,
        "num_frames": num_frames,
        "width": width,
        "height": height,
        "fps": float(shot.fps),
        "times": shot.times,
    }


def main(
    shard: str = typer.Option("", help="Fill the cells of share i of n only, as i/n; write no index."),
    fill: bool = typer.Option(False, help="Fill missing cells; write no index."),
) -> None:
    """Extract the frames of all sources."""
    params = load_params()
    table = files.read_table(Path("data/sources.parquet")).drop_duplicates("content_id").sort_values("content_id")
    extraction = Extraction(params.extract, params.data)
    sources = list(table.itertuples())
    unused = {source.path: reason for source in sources if (reason := extraction.left_out(source))}
    filling = Filling(open_store(), "extract", Shard.parse(shard) if shard else None)

    planned = [(extraction.shots_cell(source), source) for source in sources if source.path not in unused]
    by_key = {cell.key: source for cell, source in planned}
    lists = [cell for cell, _ in planned]
    filling.fill(lists, lambda cell: extraction.compute(filling, by_key[cell.key]), write_behind=True)
    rows = [row for cell, source in planned for row in fill_frames(filling, extraction, source, cell)]
    filling.close()
    report_failures(extraction.failed, params.extract.on_error)
    if not shard and not fill:
        files.write_table(Path("data/frames.parquet"), sorted(rows, key=lambda row: str(row["shot"])), SHOTS_SCHEMA)
        shown = {row["content_id"] for row in rows}
        for _, source in planned:
            if source.content_id not in shown and source.path not in extraction.failed:
                unused[source.path] = "holds nothing but black (extract.black_level)"
        for path, reason in sorted(unused.items()):
            warn(f"warning: {path} {reason}: left out")
        failures = pd.DataFrame(sorted((extraction.failed | unused).items()), columns=["path", "reason"])
        files.write_text(Path("reports/extract/skipped.csv"), failures.to_csv(index=False))
        say(f"extract: {len(rows)} shots of {len(shown)} sources")


def fill_frames(filling: Filling, extraction: Extraction, source: Any, listing: Cell) -> list[dict[str, object]]:
    """Make sure that the frames of every shot of a source are there (they can be lost when its list is not).

    Args:
        filling, extraction: as in `main`.
        source: a row of sources.parquet.
        listing: the cell that lists its shots.

    Returns:
        The source's rows of the index; none when it can't be decoded, or is another shard's.
    """
    try:
        shots = json.loads(filling.store.read(listing.kind, listing.key)[1])
    except MissingCell:
        return []
    cells = [extraction.frames_cell(source, shot) for shot in shots]
    filling.fill(cells, lambda cell: extraction.compute(filling, source))
    if filling.shard is not None:
        return []
    numbers = [f"{number:03d}" for number in range(len(shots))]
    names = {"image_pair": ["start", "end"], "image": ["image"]}.get(source.kind, numbers)
    return [
        {
            "shot": f"{source.content_id}-{name}",
            "content_id": source.content_id,
            "kind": source.kind,
            "cell": stored.key,
            **shot,
            "digest": stored.digest,
        }
        for name, shot, stored in zip(names, shots, filling.gather(cells), strict=True)
    ]


def report_failures(failed: dict[str, str], on_error: str) -> None:
    """Name the sources that could not be decoded; stop if the parameters say so."""
    for path, reason in sorted(failed.items()):
        warn(f"{'warning' if on_error == 'skip' else 'error'}: {path} {reason}")
    if failed and on_error == "stop":
        path, reason = sorted(failed.items())[0]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"{path} {reason}{more}: replace or remove it, or set extract.on_error: skip")


if __name__ == "__main__":
    typer.run(command(main))

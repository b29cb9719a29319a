"""The checks of readable files and of captions: what each rule of `rules.RULES` looks for."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from framelora.dataset.captions import Caption, Gathered
from framelora.dataset.prompts import full_text
from framelora.dataset.rules import Finding
from framelora.dataset.sources import Source
from framelora.dataset.tokens import TextLength
from framelora.dataset.tracks import SHARED, SUFFIX
from framelora.media.buckets import allowed_sizes, nearest_bucket, upscale
from framelora.media.probe import DEMUXERS, IMAGE_FORMATS, Facts

if TYPE_CHECKING:
    from framelora.schema.data import Captions, Extract, Pair

PLACEHOLDERS = frozenset(
    {"todo", "tbd", "fixme", "xxx", "n/a", "na", "none", "null", "nan", "caption", "text", "description", "placeholder"}
    | {"untitled", "test", "example", "lorem", "video", "image", "clip", "photo", "picture"}
)
# Media that people have and nothing here reads.
UNREAD = frozenset(
    {".flv", ".wmv", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".ogv", ".vob", ".mxf", ".gif"}
    | {".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".exr", ".dng", ".svg"}
)


def check_names(names: Iterable[str]) -> Iterator[Finding]:
    """Files that are read neither as media nor as captions or tracks."""
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in DEMUXERS or suffix in IMAGE_FORMATS or suffix == ".txt":
            continue
        if PurePosixPath(name).name.lower() == SHARED or name.lower().endswith(SUFFIX):
            continue
        if PurePosixPath(name).stem.lower() == "metadata" and suffix in (".json", ".jsonl", ".csv", ".parquet"):
            continue
        if suffix in UNREAD:
            yield Finding("unsupported-type", name, f"{suffix} is not read: not used")
        else:
            yield Finding("other-file", name, "is neither media nor captions")


def check_source(
    source: Source, facts: Mapping[str, Facts], captions: Captions, extract: Extract, pair: Pair
) -> Iterator[Finding]:
    """What is to say about a readable source."""
    first, *others = (facts[path] for path in source.paths)
    if any((other.width, other.height) != (first.width, first.height) for other in others):
        sizes = " and ".join(f"{facts[path].width}x{facts[path].height}" for path in source.paths)
        yield Finding("pair-sizes", source.name, f"start and end differ: {sizes}")
    bucket = nearest_bucket(first.width, first.height, allowed_sizes(extract, source.kind))
    factor = upscale(first.width, first.height, bucket)
    if factor > extract.max_upscale:
        size = f"{first.width}x{first.height} to {bucket[0]}x{bucket[1]}"
        yield Finding(
            "too-small",
            source.name,
            f"{size} enlarges it {factor:.1f} times; extract.max_upscale is {extract.max_upscale:g}",
        )
    if any(facts[path].has_alpha for path in source.paths):
        yield Finding("alpha", source.name, f"has transparency ({first.pixel_format}), which is dropped")
    if source.kind != "video":
        return
    if first.duration and first.duration < captions.min_seconds:
        limit = captions.min_seconds
        yield Finding("too-short", source.name, f"lasts {first.duration:.2f} s; captions.min_seconds is {limit:g}")
    if first.duration > captions.max_seconds:
        limit = captions.max_seconds
        yield Finding("too-long", source.name, f"lasts {first.duration:.2f} s; captions.max_seconds is {limit:g}")
    rate = min(extract.fps, first.fps) if first.fps > 0 else extract.fps
    frames = round(first.duration * rate)
    if first.duration and frames < pair.num_frames and pair.short_shots == "drop":
        held = f"{frames} frames at {rate:g} frames/s; pair.num_frames is {pair.num_frames}"
        yield Finding("no-window", source.name, f"lasts {first.duration:.2f} s, {held}")
    if 0 < first.fps < extract.fps:
        yield Finding("low-frame-rate", source.name, f"{first.fps:g} frames/s; extract.fps is {extract.fps:g}")
    if first.transfer:
        yield Finding("hdr", source.name, f"is high dynamic range ({first.transfer}): tone-mapped to BT.709")
    if first.interlaced:
        yield Finding("interlaced", source.name, "is interlaced: deinterlaced")


def check_copies(sources: Iterable[Source], content_ids: Mapping[str, str]) -> Iterator[Finding]:
    """Names of one content."""
    first: dict[str, str] = {}
    for source in sources:
        if (other := first.setdefault(content_ids[source.name], source.name)) != source.name:
            yield Finding("same-content", source.name, f"has the same content as {other}")


def check_captions(
    gathered: Gathered,
    sources: list[Source],
    content_ids: Mapping[str, str],
    params: Captions,
    length: TextLength,
) -> Iterator[Finding]:
    """What is to say about captions."""
    names: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        caption = gathered.captions.get(content_ids[source.name])
        if caption is None:
            yield Finding("no-caption", source.name, "has no caption")
        else:
            names[content_ids[source.name]].append(source.name)
    alike: dict[str, list[Caption]] = defaultdict(list)
    for content_id, of_content in names.items():
        caption = gathered.captions[content_id]
        if not caption.text:
            yield Finding("empty-caption", caption.where, f"{of_content[0]} has an empty caption")
            continue
        alike[re.sub(r"\d+", "#", " ".join(caption.text.lower().split()))].append(caption)
        yield from check_text(caption, of_content, params, length)
    for captions in alike.values():
        if len(captions) > params.max_repeats:
            text = captions[0].text if len(captions[0].text) < 60 else captions[0].text[:57] + "..."
            yield Finding("repeated-caption", captions[0].where, f"{len(captions)} contents have {text!r}")


def check_text(caption: Caption, names: list[str], params: Captions, length: TextLength) -> Iterator[Finding]:
    """What is to say about one caption that is not empty. It must say enough by itself; it may be too long with the
    trigger word, prefix and suffix that models get with it."""
    text = caption.text
    plain = text.lower().strip(" .!?<>[](){}\"'_-")
    stems = {re.sub(r"[\W_]+", " ", PurePosixPath(name).stem).lower().strip() for name in names}
    if not plain or plain in PLACEHOLDERS or plain.startswith("lorem ipsum") or re.sub(r"[\W_]+", " ", plain) in stems:
        yield Finding("placeholder", caption.where, f"{text[:60]!r} says nothing of the picture")
    else:
        if (count := length.count(text)) < params.min_tokens:
            message = f"{count} {length.unit}; captions.min_tokens is {params.min_tokens}"
            yield Finding("short-caption", caption.where, message)
        whole = full_text(text, trigger_word=params.trigger_word, prefix=params.prefix, suffix=params.suffix)
        if (count := length.count(whole)) > params.max_tokens:
            message = f"{count} {length.unit}; captions.max_tokens is {params.max_tokens}"
            yield Finding("long-caption", caption.where, message)
    odd = sorted({char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Co", "Cn") and char != "\n"})
    odd = [char for char in odd if char not in "\u200d\u200c"]  # joiners, which emoji and some scripts need
    if odd:
        listed = ", ".join(f"U+{ord(char):04X}" for char in odd[:5])
        yield Finding("control-characters", caption.where, f"holds {listed}")
    if "\N{REPLACEMENT CHARACTER}" in text or misread(text):
        yield Finding("mixed-encodings", caption.where, f"{text[:60]!r} holds characters that were decoded wrongly")


def misread(text: str) -> bool:
    """Whether a text is UTF-8 that somebody read as Latin-1 or Windows-1252."""
    for encoding in ("latin-1", "cp1252"):
        try:
            if text.encode(encoding).decode() != text:
                return True
        except (UnicodeEncodeError, UnicodeDecodeError):
            continue
    return False

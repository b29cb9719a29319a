"""What a file is, before anything of it is trusted: container, codec, picture size, rotation, rate."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image, ImageOps, UnidentifiedImageError

# Demuxer of each accepted extension. It is forced, and the file must begin as that container does, so that a playlist
# called clip.mp4 can't make a decoder open other files or addresses.
DEMUXERS = {".mp4": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
IMAGE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


class Unreadable(Exception):
    """The file can't be used; the text says why, in a few words."""


@dataclass(frozen=True)
class Facts:
    """Facts of a video or image file. Width and height are as displayed: rotated, with square pixels."""

    width: int  # pixels
    height: int  # pixels
    num_frames: int  # 1 for an image; for a video the container's count, 0 when it has none
    fps: float  # average frames a second; 0 for an image
    duration: float  # seconds; 0 for an image
    codec: str
    rotation: int  # degrees that a player turns the stored picture, counter-clockwise


def begins_as(path: Path) -> bool:
    """Whether a video file starts with the signature of the container that its extension names."""
    with path.open("rb") as file:
        head = file.read(12)
    match DEMUXERS[path.suffix.lower()]:
        case "mov":
            return head[4:8] in MOV_BOXES
        case "matroska":
            return head[:4] == b"\x1a\x45\xdf\xa3"
        case _:
            return head[:4] == b"RIFF" and head[8:12] == b"AVI "


def probe_video(path: Path) -> Facts:
    """Read a video's facts and decode its first frame.

    Raises:
        Unreadable: not that container, no video stream, or no frame that decodes.
    """
    if path.stat().st_size == 0:
        raise Unreadable("is empty (0 bytes)")
    if not begins_as(path):
        raise Unreadable(f"is not a {path.suffix.lower()} file, whatever its name says")
    demuxer = DEMUXERS[path.suffix.lower()]
    try:
        with av.open(
            str(path), format=demuxer, options={"protocol_whitelist": "file"}, metadata_errors="replace"
        ) as container:
            if not container.streams.video:
                raise Unreadable("has no video stream")
            stream = container.streams.video[0]
            frame = next(container.decode(stream), None)
            if frame is None:
                raise Unreadable("holds no frame that decodes")
            rate = stream.average_rate or stream.guessed_rate or Fraction(0)
            duration = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            if not duration and container.duration:
                duration = container.duration / av.time_base
            pixel_aspect = stream.sample_aspect_ratio or Fraction(1)
            width, height = round(frame.width * pixel_aspect), frame.height
            rotation = round(frame.rotation) % 360
            codec = stream.codec_context.name
            num_frames = stream.frames
    except av.FFmpegError as error:
        raise Unreadable(f"can't be opened as video ({error.strerror or error})") from None
    if rotation in (90, 270):
        width, height = height, width
    return Facts(width, height, num_frames, float(rate), duration, codec, rotation)


def open_image(path: Path) -> Image.Image:
    """Open an image as the format its extension names and decode it to RGB, upright as its EXIF orientation says.

    Raises:
        Unreadable: it is none, is damaged, or is too large to be a picture (decompression bomb).
    """
    try:
        with Image.open(path, formats=[IMAGE_FORMATS[path.suffix.lower()]]) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise Unreadable(f"is not a {path.suffix.lower()} image, whatever its name says") from None
    except Image.DecompressionBombError:
        raise Unreadable("has too many pixels to be a picture") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise Unreadable(f"can't be decoded ({error})") from None


def probe_image(path: Path) -> Facts:
    """Read an image's facts. Raises `Unreadable` as `open_image` does."""
    image = open_image(path)
    return Facts(image.width, image.height, 1, 0.0, 0.0, IMAGE_FORMATS[path.suffix.lower()].lower(), 0)

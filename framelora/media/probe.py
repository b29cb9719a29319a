"""What a file is, before anything of it is trusted: container, codec, picture size, rotation, rate."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
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


THUMBNAIL = 96  # pixels of the longer side
# Transfer characteristics of ITU-T H.273 that mean high dynamic range.
HDR_TRANSFERS = {16: "pq", 18: "hlg"}
PATIENCE = 30.0  # seconds for opening a file, and for each read


class Unreadable(Exception):
    """The file can't be used; the text says why, in a few words."""


class Unsupported(Unreadable):
    """The file is whole, but nothing here decodes its codec."""


class OverLimit(Unreadable):
    """The file is larger or longer than the limits allow."""


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
    # FFmpeg's name, for example yuv420p10le, or an image's mode by Pillow; with its alpha, wherever that is stored.
    pixel_format: str = ""
    transfer: str = ""  # pq or hlg for high dynamic range, else empty
    interlaced: bool = False  # by the first frame

    @property
    def has_alpha(self) -> bool:
        """Whether pixels can be transparent."""
        return self.pixel_format.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya")) or (
            self.pixel_format in ("RGBA", "LA", "PA")
        )


@dataclass(frozen=True)
class Limits:
    """What is refused, so that no file takes the machine down."""

    max_pixels: int = 50_000_000  # of a frame or image
    max_frames: int = 250_000
    max_seconds: float = 3600.0


NO_FILE_BEYOND = Limits()


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


def probe_video(path: Path, limits: Limits = NO_FILE_BEYOND) -> Facts:
    """Read a video's facts; its first frame is decoded. Raises as `peek_video` does."""
    return peek_video(path, limits)[0]


def peek_video(path: Path, limits: Limits = NO_FILE_BEYOND) -> tuple[Facts, Image.Image]:
    """Read a video's facts and its first frame, upright, as a thumbnail.

    Raises:
        Unreadable: not that container, no video stream, or no frame that decodes.
        Unsupported: no decoder for the stream.
        OverLimit: its frames are too large, or it is too long, by its header or its first frame.
    """
    if path.stat().st_size == 0:
        raise Unreadable("is empty (0 bytes)")
    if not begins_as(path):
        raise Unreadable(f"is not a {path.suffix.lower()} file, whatever its name says")
    try:
        with av.open(
            f"file:{path}",
            format=DEMUXERS[path.suffix.lower()],
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
            timeout=PATIENCE,
        ) as container:
            return _peek(container, limits)
    except av.error.ExitError:
        raise OverLimit(f"can't be opened within {PATIENCE:.0f} s") from None
    except av.FFmpegError as error:
        raise Unreadable(f"can't be opened as video ({error.strerror or error})") from None


def _peek(container: av.container.InputContainer, limits: Limits) -> tuple[Facts, Image.Image]:
    """Facts and first frame of an open container."""
    if not container.streams.video:
        raise Unreadable("has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise Unsupported("has a video stream of an unknown codec")
    check_pixels(stream.width or 0, stream.height or 0, limits)
    stream.codec_context.thread_count = 1
    frame = next(container.decode(stream), None)
    if frame is None:
        raise Unreadable("holds no frame that decodes")
    check_pixels(frame.width, frame.height, limits)
    duration = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    if not duration and container.duration:
        duration = container.duration / av.time_base
    if duration > limits.max_seconds:
        raise OverLimit(f"lasts {duration:.0f} s; data.max_seconds is {limits.max_seconds:g}")
    if stream.frames > limits.max_frames:
        raise OverLimit(f"has {stream.frames} frames; data.max_frames is {limits.max_frames}")
    width, height = round(frame.width * (stream.sample_aspect_ratio or Fraction(1))) or 1, frame.height
    check_pixels(width, height, limits)
    rotation = round(frame.rotation) % 360
    if rotation in (90, 270):
        width, height = height, width
    facts = Facts(
        width,
        height,
        stream.frames,
        float(stream.average_rate or stream.guessed_rate or 0),
        max(duration, 0.0),
        stream.codec_context.name,
        rotation,
        with_alpha(frame.format.name, stream.metadata),
        HDR_TRANSFERS.get(int(frame.color_trc or 0), ""),
        bool(frame.interlaced_frame),
    )
    scale = THUMBNAIL / max(width, height)
    small = [max(1, round(side * scale)) for side in (width, height)]
    stored = small[::-1] if rotation in (90, 270) else small
    picture = frame.to_image(width=stored[0], height=stored[1])
    return facts, picture.rotate(rotation, expand=True) if rotation else picture


def with_alpha(pixel_format: str, tags: Mapping[str, str]) -> str:
    """The pixel format of a stream whose alpha is a second stream that no decoder here looks at, as VP8 and VP9 have it
    in WebM and Matroska; any other as it is."""
    separate = any(name.lower() == "alpha_mode" and value == "1" for name, value in tags.items())
    return f"yuva{pixel_format.removeprefix('yuv')}" if separate and pixel_format.startswith("yuv4") else pixel_format


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Raise `OverLimit` for a picture that is too large."""
    if width * height > limits.max_pixels:
        raise OverLimit(f"is {width}x{height} pixels; data.max_pixels is {limits.max_pixels}")


def open_image(path: Path, limits: Limits = NO_FILE_BEYOND) -> Image.Image:
    """Open an image as the format its extension names and decode it to RGB, upright as its EXIF orientation says.

    Raises:
        Unreadable: it is none, or is damaged.
        OverLimit: it is too large; that is seen before a pixel is decoded.
    """
    return _open_image(path, limits)[0]


def _open_image(path: Path, limits: Limits) -> tuple[Image.Image, str]:
    """The decoded image, and the mode that its pixels were stored in, with an alpha that its header tells."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit decides
            with Image.open(path, formats=[IMAGE_FORMATS[path.suffix.lower()]]) as image:
                check_pixels(*image.size, limits)
                mode = image.mode
                if image.has_transparency_data and "A" not in mode:  # of a colour, or of each of a palette
                    mode = {"P": "PA", "L": "LA", "1": "LA"}.get(mode, "RGBA")
                upright = ImageOps.exif_transpose(image)
                # A palette goes through RGBA: Pillow warns of what it drops otherwise.
                return (upright.convert("RGBA") if mode == "PA" else upright).convert("RGB"), mode
    except UnidentifiedImageError:
        raise Unreadable(f"is not a {path.suffix.lower()} image, whatever its name says") from None
    except Image.DecompressionBombError:
        raise OverLimit("has too many pixels to be a picture") from None
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        raise Unreadable(f"can't be decoded ({' '.join(str(error).split())[:120]})") from None


def probe_image(path: Path, limits: Limits = NO_FILE_BEYOND) -> Facts:
    """Read an image's facts. Raises as `open_image` does."""
    return peek_image(path, limits)[0]


def peek_image(path: Path, limits: Limits = NO_FILE_BEYOND) -> tuple[Facts, Image.Image]:
    """Read an image's facts and its pixels. Raises as `open_image` does."""
    image, mode = _open_image(path, limits)
    codec = IMAGE_FORMATS[path.suffix.lower()].lower()
    return Facts(image.width, image.height, 1, 0.0, 0.0, codec, 0, pixel_format=mode), image


def thumbnail(picture: Image.Image) -> bytes:
    """A picture as a small JPEG, its longer side `THUMBNAIL` pixels. Equal pictures give equal bytes."""
    picture = picture.copy()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(sink := io.BytesIO(), "JPEG", quality=75)
    return sink.getvalue()

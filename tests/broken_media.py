"""Builds a corpus of broken and odd media: `build(folder)` writes the files, docs/data.md says how each must end."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "12")
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none")
HDR = "setparams=color_trc=smpte2084:color_primaries=bt2020:colorspace=bt2020nc"
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"dinf")


def ffmpeg(*arguments: str | Path) -> None:
    """ffmpeg's command line; an error is the test's."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def clip(path: Path, *options: str, source: str = "testsrc2=size=192x128:rate=24:duration=1") -> Path:
    """A synthetic clip."""
    ffmpeg("-f", "lavfi", "-i", source, *(options or H264), path)
    return path


def box_ends(data: bytes, start: int = 0, end: int | None = None) -> Iterator[int]:
    """Where each box of an mp4 begins and ends, inner boxes too."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        if length < 8:
            return
        yield start
        yield start + 8
        if kind in CONTAINERS:
            yield from box_ends(data, start + 8, start + length)
        start += length
        yield start


def build(folder: Path) -> dict[str, str]:
    """Write the corpus.

    Returns:
        For each file's name how it must end: `frames N` (N frames at 8 a second; `N-M` a range), or `TYPE: part of the
        reason` that it is refused with.
    """
    outcomes = {}
    good = clip(folder / "good.mp4")
    fast = folder / "fast.mp4"
    ffmpeg("-i", good, "-c", "copy", "-movflags", "+faststart", fast)
    outcomes["good.mp4"] = outcomes["fast.mp4"] = "frames 8"
    for name in ("good", "fast"):
        data = (folder / f"{name}.mp4").read_bytes()
        for place in sorted(set(box_ends(data)) - {len(data)}):
            (folder / f"{name} cut at {place}.mp4").write_bytes(data[:place])
            outcomes[f"{name} cut at {place}.mp4"] = "refused or whole"
    (folder / "empty.mkv").touch()
    outcomes["empty.mkv"] = "Unreadable: is empty (0 bytes)"
    (folder / "really mp4.avi").write_bytes(good.read_bytes())
    outcomes["really mp4.avi"] = "Unreadable: is not a .avi file"
    for name, target in (("local", good.name), ("url", "http://127.0.0.1:9/a.mp4")):
        (folder / f"{name} list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n")
        outcomes[f"{name} list.mp4"] = "Unreadable: is not a .mp4 file"
    data = good.read_bytes()
    stts = data.index(b"stts")
    (folder / "no rate.mp4").write_bytes(data[: stts + 16] + bytes(4) + data[stts + 20 :])
    outcomes["no rate.mp4"] = "frames 1-8"
    raw = clip(folder / "absurd.avi", "-c:v", "rawvideo", "-pix_fmt", "bgr24", "-frames:v", "2").read_bytes()
    strf = raw.index(b"strf") + 12
    (folder / "absurd.avi").write_bytes(raw[:strf] + struct.pack("<ii", 9000, 9000) + raw[strf + 8 :])
    outcomes["absurd.avi"] = "OverLimit: is 9000x9000 pixels"
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    outcomes["bomb.png"] = "OverLimit: has too many pixels"
    clip(folder / "two hours.mp4", *H264, source="color=black:size=64x64:rate=1/7200:duration=7200")
    outcomes["two hours.mp4"] = "OverLimit: lasts 7200 s"
    clip(folder / "black.mp4", *H264, source="color=black:size=64x64:rate=24:duration=30")
    outcomes["black.mp4"] = "frames 0"
    clip(
        folder / "interlaced.mp4",
        "-vf",
        "tinterlace=interleave_top",
        *H264,
        "-flags",
        "+ildct+ilme",
        "-x264opts",
        "tff=1",
    )
    outcomes["interlaced.mp4"] = "frames 8"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", folder / "sound.mp4")
    outcomes["sound.mp4"] = "Unreadable: has no video stream"
    clip(folder / "alpha.mkv", "-c:v", "ffv1", "-pix_fmt", "yuva420p")
    outcomes["alpha.mkv"] = "frames 8"
    clip(folder / "odd.mkv", "-vf", "scale=131:97", "-c:v", "ffv1", "-pix_fmt", "yuv444p")
    outcomes["odd.mkv"] = "frames 8"
    clip(folder / "one frame.mp4", *H264, "-frames:v", "1")
    outcomes["one frame.mp4"] = "frames 1"
    clip(folder / "before zero.mp4", *H264, "-output_ts_offset", "-0.5", "-avoid_negative_ts", "disabled")
    outcomes["before zero.mp4"] = "frames 4-8"
    clip(folder / "hdr.mp4", *X265, source=f"testsrc2=size=192x128:rate=24:duration=1,format=yuv420p10le,{HDR}")
    outcomes["hdr.mp4"] = "frames 8"
    clip(folder / "ten bits.mp4", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le")
    outcomes["ten bits.mp4"] = "frames 8"
    return outcomes

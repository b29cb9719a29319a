"""Media in and out: what comes from a decoder is what ffmpeg shows, and what can't be trusted is refused."""

from __future__ import annotations

import io
import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from framelora.media.buckets import centre_crop, cover, nearest_bucket
from framelora.media.decode import decode_image, decode_video
from framelora.media.frames import first_reason, read_frames
from framelora.media.lossless import decode_frames, encode_frames
from framelora.media.preview import contact_sheet, encode_mp4
from framelora.media.probe import NO_FILE_BEYOND, Limits, OverLimit, Unreadable, open_image, probe_image, probe_video
from framelora.media.shots import Cutting, Shot, Ticks

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
BUCKETS = ("96x64", "64x96", "64x64")
NO_CUTS = 1e9


def ffmpeg(*arguments: str | Path) -> bytes:
    command = [FFMPEG, "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def make_video(
    path: Path,
    *options: str,
    size: str = "96x64",
    rate: str = "24",
    seconds: float = 1.0,
    picture: str = "testsrc2",
    codec: tuple[str, ...] = H264,
) -> Path:
    ffmpeg("-f", "lavfi", "-i", f"{picture}=size={size}:rate={rate}:duration={seconds}", *codec, *options, path)
    return path


def ffmpeg_frames(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """All frames as ffmpeg's own command line shows them, rotated and scaled."""
    scale = f"scale={width}:{height}:flags=bilinear"  # as decord scales
    raw = ffmpeg("-i", path, "-vf", scale, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def decode(path: Path, **options: Any) -> list[Shot]:
    """Shots of a video; without options it is one shot of all frames."""
    defaults = {"target_fps": 24.0, "buckets": BUCKETS, "limits": NO_FILE_BEYOND}
    cutting = {"shot_threshold": NO_CUTS, "max_shot_seconds": 100.0}
    cutting |= {name: options.pop(name) for name in Cutting.__dataclass_fields__ if name in options}
    return list(decode_video(path, cutting=Cutting(**cutting), **{**defaults, **options}))


def sample_times(times: list[float], fps: float, target_fps: float) -> tuple[list[int], float]:
    """Numbers of the frames that are kept, and the rate that results."""
    ticks = Ticks(times[0], fps, target_fps)
    counts = [*map(ticks.until, times[1:]), 0]
    counts[-1] = ticks.rest(times[-1])
    return [number for number, count in enumerate(counts) for _ in range(count)], ticks.rate


def times_of(path: Path) -> list[float]:
    """Display times of all frames."""
    return [time for time, _ in read_frames(path, probe_video(path), (16, 16), NO_FILE_BEYOND)]


def difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int16]:
    return np.abs(first.astype(np.int16) - second.astype(np.int16))


def flip(data: bytes, start: int, count: int) -> bytes:
    return data[:start] + bytes(byte ^ 0xFF for byte in data[start : start + count]) + data[start + count :]


# lossless


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(8, 41), st.integers(8, 41), st.integers(0, 2**32 - 1))
def test_lossless_frames_come_back_bit_for_bit_in_the_same_bytes(
    count: int, height: int, width: int, seed: int
) -> None:
    """Noise, the hardest picture there is, in even and odd sizes."""
    frames = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)
    data = encode_frames(frames)
    np.testing.assert_array_equal(decode_frames(data), frames)
    assert encode_frames(frames.copy()) == data


@pytest.mark.parametrize("value", [0, 255])
def test_lossless_keeps_flat_frames_at_the_ends_of_the_range(value: int) -> None:
    frames = np.full((3, 64, 96, 3), value, np.uint8)
    np.testing.assert_array_equal(decode_frames(encode_frames(frames)), frames)


def test_lossless_takes_frames_that_are_a_view() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), np.uint8)[::-1, ::2, 8:72]
    np.testing.assert_array_equal(decode_frames(encode_frames(frames)), frames)


# preview


def test_mp4_previews_are_readable_and_the_same_bytes_each_time() -> None:
    rows = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None, None]
    frames = np.broadcast_to(rows, (7, 64, 96, 3)).copy()
    frames[..., 0] += np.arange(7, dtype=np.uint8)[:, None, None] * 8
    data = encode_mp4(frames, 6)
    assert {encode_mp4(frames, 6) for _ in range(10)} == {data}
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 6)
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert shown.shape == frames.shape
    assert difference(shown, frames).mean() < 4


def test_a_contact_sheet_shows_each_frame_at_its_place() -> None:
    random = np.random.default_rng(0)
    rows = {name: random.integers(0, 256, (count, 16, 24, 3), np.uint8) for name, count in (("base", 3), ("truth", 2))}
    data = contact_sheet(rows)
    assert contact_sheet(rows) == data
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    assert sheet.shape == (2 * (16 + 14), 3 * 24, 3)
    for row, frames in enumerate(rows.values()):
        for number, frame in enumerate(frames):
            top = row * 30 + 14
            np.testing.assert_array_equal(sheet[top : top + 16, number * 24 : number * 24 + 24], frame)


# buckets

SIDE = st.integers(1, 5000)
BUCKET = st.tuples(st.integers(1, 64), st.integers(1, 64)).map(lambda cells: (8 * cells[0], 8 * cells[1]))


@given(SIDE, SIDE, BUCKET)
def test_cover_is_never_smaller_than_the_bucket_and_keeps_the_aspect(
    width: int, height: int, bucket: tuple[int, int]
) -> None:
    covered = cover(width, height, bucket)
    scale = max(bucket[0] / width, bucket[1] / height)
    assert all(side >= wanted for side, wanted in zip(covered, bucket, strict=True))
    assert any(side == wanted for side, wanted in zip(covered, bucket, strict=True))
    assert abs(covered[0] - width * scale) < 1
    assert abs(covered[1] - height * scale) < 1


@given(SIDE, SIDE, st.lists(BUCKET, min_size=1, max_size=6))
def test_the_nearest_bucket_needs_the_least_cropping(width: int, height: int, buckets: list[tuple[int, int]]) -> None:
    def cropped(bucket: tuple[int, int]) -> float:
        aspects = (width / height, bucket[0] / bucket[1])
        return max(aspects) / min(aspects)

    chosen = nearest_bucket(width, height, [f"{w}x{h}" for w, h in buckets])
    assert chosen in buckets
    assert cropped(chosen) <= min(map(cropped, buckets)) * (1 + 1e-9)


def test_equally_near_buckets_go_to_the_first() -> None:
    assert nearest_bucket(100, 100, ["128x64", "64x128"]) == (128, 64)
    assert nearest_bucket(1920, 1080, ["128x72", "256x144"]) == (128, 72)


@given(st.integers(0, 9), st.integers(0, 9))
def test_the_crop_is_in_the_middle(extra_height: int, extra_width: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 8 + extra_height, 16 + extra_width, 3), np.uint8)
    cut = centre_crop(frames, (16, 8))
    top, left = extra_height // 2, extra_width // 2
    np.testing.assert_array_equal(cut, frames[:, top : top + 8, left : left + 16])


# sample_times


def shown_at(times: list[float], moment: float) -> int:
    """The frame on a player's screen: the last one that was due, a millisecond of rounding allowed."""
    return max(number for number, time in enumerate(times) if time <= moment + 1e-3)


@settings(deadline=None)
@given(
    st.lists(st.integers(5, 400), min_size=0, max_size=40),
    st.integers(-2000, 5000),
    st.floats(0.5, 60, allow_nan=False),
    st.floats(1, 60, allow_nan=False),
)
def test_each_tick_keeps_the_frame_that_is_shown_then(
    gaps: list[int], first: int, fps: float, target_fps: float
) -> None:
    """Variable rate, any start (also before zero), on a clock of milliseconds."""
    times = [(first + sum(gaps[:count])) / 1000 for count in range(len(gaps) + 1)]
    kept, rate = sample_times(times, fps, target_fps)
    assert rate == min(fps, target_fps)
    ticks = [times[0] + number / rate for number in range(len(kept))]
    assert kept == [shown_at(times, tick) for tick in ticks]
    # All ticks before the last frame's time is over, and at least one.
    end = times[-1] + 1 / fps
    ticks = list(itertools.takewhile(lambda tick: tick + 1e-3 < end, (times[0] + n / rate for n in itertools.count())))
    assert len(kept) == max(1, len(ticks))


@pytest.mark.parametrize("fps", [24000 / 1001, 25.0, 30000 / 1001, 30.0, 50.0, 60.0])
@pytest.mark.parametrize("target_fps", [60.0, 120.0])
@pytest.mark.parametrize("rounding", [None, 3, 6, np.float32])
@pytest.mark.parametrize("first", [0.0, -0.08, 3000.0])
def test_a_slower_source_keeps_each_frame_once(
    fps: float, target_fps: float, rounding: int | type | None, first: float
) -> None:
    """Whatever the container's clock (Matroska: milliseconds) and decord's 32-bit floats do to the time stamps."""
    exact = [first + number / fps for number in range(2000)]
    match rounding:
        case None:
            times = exact
        case int():
            times = [round(time, rounding) for time in exact]
        case _:
            times = [float(np.float32(time)) for time in exact]
    kept, rate = sample_times(times, fps, target_fps)
    assert kept == list(range(2000))
    assert rate == fps


def test_half_the_rate_keeps_every_other_frame() -> None:
    assert sample_times([number / 24 for number in range(10)], 24.0, 12.0) == ([0, 2, 4, 6, 8], 12.0)


def test_a_source_without_a_rate_is_sampled_at_the_target() -> None:
    assert sample_times([0.0, 0.5, 1.0], 0.0, 2.0) == ([0, 1], 2.0)


# decode_video


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi", "A.MP4"])
def test_frames_and_times_are_those_of_ffmpeg_in_every_container(tmp_path: Path, name: str) -> None:
    codec = ("-c:v", "libvpx", "-b:v", "1M") if name.endswith("webm") else ("-c:v", "libx264", "-pix_fmt", "yuv420p")
    path = make_video(tmp_path / name, rate="24000/1001", codec=codec)
    (shot,) = decode(path, target_fps=60.0)
    reference = ffmpeg_frames(path, 96, 64)
    assert shot.frames.shape == reference.shape == (24, 64, 96, 3)
    assert difference(shot.frames, reference).max() <= 1
    assert shot.fps == pytest.approx(24000 / 1001)
    first = shot.times[0]  # an AVI with B frames starts late
    np.testing.assert_allclose(shot.times, [first + number * 1001 / 24000 for number in range(24)], atol=1e-3)


@pytest.mark.parametrize("options", [("mjpeg",), ("mpeg4",), ("mpeg4", "-bf", "2"), ("libx264", "-bf", "0")])
def test_an_avi_without_time_stamps_keeps_its_frames(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = make_video(tmp_path / "a.avi", codec=("-c:v", *options), rate="25")
    (shot,) = decode(path, target_fps=30.0)
    reference = ffmpeg_frames(path, 96, 64)
    assert difference(shot.frames, reference).max() <= 1
    np.testing.assert_allclose(shot.times, [shot.times[0] + number / 25 for number in range(25)], atol=2e-6)


def test_a_lower_rate_keeps_ffmpegs_frames_of_those_times(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", rate="30")
    (shot,) = decode(path, target_fps=12.0)
    times = [number / 30 for number in range(30)]
    numbers = [shown_at(times, tick / 12) for tick in range(12)]
    assert difference(shot.frames, ffmpeg_frames(path, 96, 64)[numbers]).max() <= 1
    np.testing.assert_allclose(shot.times, [times[number] for number in numbers], atol=1e-5)


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_follow_the_files_matrix_and_range(tmp_path: Path, matrix: str, full_range: bool) -> None:
    reach = "pc" if full_range else "tv"
    tags = ("-vf", f"scale=out_color_matrix={matrix}:out_range={reach},format=yuv420p", "-colorspace", matrix)
    path = make_video(tmp_path / "a.mp4", *tags, "-color_range", reach, seconds=0.5)
    assert difference(decode(path)[0].frames, ffmpeg_frames(path, 96, 64)).max() <= 2


def test_a_long_video_keeps_each_frame_once(tmp_path: Path) -> None:
    """decord's own time stamps, 32-bit floats, are off by microseconds after a minute."""
    path = make_video(tmp_path / "a.mp4", size="64x64", rate="30000/1001", seconds=100)
    (shot,) = decode(path, target_fps=60.0, buckets=["64x64"], max_shot_seconds=1000.0)
    assert len(shot.times) == len(set(shot.times)) == 2998


def test_a_hard_cut_between_two_colours_is_found(tmp_path: Path) -> None:
    halves = "color=red:size=96x64:rate=24:duration=1.5[a];color=blue:size=96x64:rate=24:duration=1[b];[a][b]concat"
    path = tmp_path / "a.mp4"
    ffmpeg("-filter_complex", halves, *H264, path)
    first, second = decode(path, shot_threshold=27.0)
    assert (len(first.frames), len(second.frames)) == (36, 24)
    assert (second.times[0], first.times[-1]) == (1.5, round(35 / 24, 6))
    assert first.frames[..., 0].min() > 128 > first.frames[..., 2].max()
    assert second.frames[..., 2].min() > 128 > second.frames[..., 0].max()


def test_a_cut_is_found_also_where_its_frame_is_not_kept(tmp_path: Path) -> None:
    """Cuts are found at the source's rate: at a third of it, no kept frame shows two shots."""
    halves = "color=red:size=96x64:rate=24:duration=1.75[a];color=blue:size=96x64:rate=24:duration=1[b];[a][b]concat"
    path = tmp_path / "a.mp4"
    ffmpeg("-filter_complex", halves, *H264, path)
    first, second = decode(path, shot_threshold=27.0, target_fps=5.0)
    assert first.frames[..., 2].max() < 128 < second.frames[..., 2].min()
    assert first.times[-1] < 1.75 <= second.times[0]


def test_a_cut_soon_after_another_is_ignored(tmp_path: Path) -> None:
    colours = [("red", 1), ("blue", 0.25), ("red", 1)]
    inputs = ";".join(
        f"color={name}:size=96x64:rate=24:duration={length}[{number}]" for number, (name, length) in enumerate(colours)
    )
    path = tmp_path / "a.mp4"
    ffmpeg("-filter_complex", f"{inputs};[0][1][2]concat=n=3", *H264, path)
    assert [len(shot.frames) for shot in decode(path, shot_threshold=27.0)] == [24, 30]
    assert [len(shot.frames) for shot in decode(path, shot_threshold=27.0, min_shot_seconds=0.2)] == [24, 6, 24]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_video_comes_out_upright(tmp_path: Path, degrees: int) -> None:
    stored = make_video(tmp_path / "stored.mp4", size="192x128", seconds=0.5)
    path = tmp_path / "a.mp4"
    ffmpeg("-display_rotation", str(degrees), "-i", stored, "-c", "copy", path)
    facts = probe_video(path)
    upright = (192, 128) if degrees == 180 else (128, 192)
    assert (facts.rotation, facts.width, facts.height) == (degrees, *upright)
    (shot,) = decode(path)
    width, height = (side // 2 for side in upright)
    reference = ffmpeg_frames(path, width, height)  # it rotates, then scales; decord the other way round
    assert shot.frames.shape == reference.shape
    close = difference(shot.frames, reference).mean()
    wrong = min(
        difference(np.rot90(shot.frames, 2, (1, 2)), reference).mean(),
        difference(shot.frames[:, ::-1], reference).mean(),
    )
    assert close < 4
    assert wrong > 20


def test_the_sample_aspect_ratio_is_honoured(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", "-vf", "setsar=2", size="48x64", seconds=0.5)
    facts = probe_video(path)
    assert (facts.width, facts.height) == (96, 64)
    (shot,) = decode(path)
    assert difference(shot.frames, ffmpeg_frames(path, 96, 64)).mean() < 4


@pytest.mark.parametrize("size", ["321x181", "181x321", "33x500", "1x1"])
def test_odd_sizes(tmp_path: Path, size: str) -> None:
    width, height = map(int, size.split("x"))
    path = make_video(
        tmp_path / "a.mkv",
        "-vf",
        f"scale={width}:{height},setsar=1",
        codec=("-c:v", "ffv1", "-pix_fmt", "yuv444p"),
        seconds=0.5,
    )
    facts = probe_video(path)
    assert (facts.width, facts.height) == (width, height)
    (shot,) = decode(path)
    bucket = nearest_bucket(width, height, BUCKETS)
    reference = centre_crop(ffmpeg_frames(path, *cover(width, height, bucket)), bucket)
    assert shot.frames.shape == (12, bucket[1], bucket[0], 3)
    assert difference(shot.frames, reference).mean() < 4  # testsrc2's hard edges, scaled by two versions of FFmpeg


@pytest.mark.parametrize("width", [8, 12, 16, 20, 24, 40, 48, 56, 72, 73])
def test_narrow_pictures_decode(tmp_path: Path, width: int) -> None:
    """decord fails at some widths below 96 pixels."""
    path = make_video(tmp_path / "a.mp4", "-vf", "gblur=sigma=8", size=f"{2 * width}x48", seconds=0.25)
    bucket = (width // 8 * 8, 24)
    (shot,) = decode(path, buckets=["{}x{}".format(*bucket)])
    assert shot.frames.shape == (6, 24, bucket[0], 3)
    reference = centre_crop(ffmpeg_frames(path, *cover(2 * width, 48, bucket)), bucket)
    assert difference(shot.frames, reference).mean() < 6


@pytest.mark.parametrize("size", ["160x90", "90x160", "100x104"])
def test_the_bucket_follows_the_aspect(tmp_path: Path, size: str) -> None:
    width, height = map(int, size.split("x"))
    shape = decode(make_video(tmp_path / "a.mp4", size=size, seconds=0.25))[0].frames.shape
    assert (shape[2], shape[1]) == nearest_bucket(width, height, BUCKETS)


def test_a_variable_rate_shows_each_frame_as_long_as_a_player_does(tmp_path: Path) -> None:
    """12 frames at 24 a second, then every third: 12 a second are kept."""
    path = make_video(tmp_path / "a.mp4", "-vf", "select=lt(n\\,12)+not(mod(n\\,3))", "-fps_mode", "vfr", seconds=2)
    (shot,) = decode(path, target_fps=12.0)
    times = [number / 24 for number in range(48) if number < 12 or number % 3 == 0]
    numbers = [shown_at(times, tick / 12) for tick in range(len(shot.times))]
    assert len(shot.times) == 24
    np.testing.assert_allclose(shot.times, [times[number] for number in numbers], atol=1e-4)
    assert difference(shot.frames, ffmpeg_frames(path, 96, 64)[numbers]).max() <= 1


@pytest.mark.parametrize(("start", "length"), [("0.2", "9"), ("1.3", "9"), ("2.9", "1.02")])
def test_a_losslessly_trimmed_video_is_what_players_show(tmp_path: Path, start: str, length: str) -> None:
    """The file keeps the frames from the key frame before; an edit list hides them. decord alone repeats the last."""
    whole = make_video(tmp_path / "whole.mp4", "-g", "48", "-bf", "2", seconds=5)
    path = tmp_path / "a.mp4"
    ffmpeg("-ss", start, "-t", length, "-i", whole, "-c", "copy", path)
    (shot,) = decode(path)
    reference = ffmpeg_frames(path, 96, 64)
    assert len(reference) < 120
    assert shot.frames.shape == reference.shape
    assert difference(shot.frames, reference).max() <= 1
    np.testing.assert_allclose(shot.times, shot.times[0] + np.arange(len(reference)) / 24, atol=1e-4)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_hidden_reference_frames_are_no_frames(tmp_path: Path, codec: str) -> None:
    hidden = ("-auto-alt-ref", "1", "-lag-in-frames", "25", "-b:v", "200k", "-cpu-used", "8")
    path = make_video(tmp_path / "a.webm", *hidden, codec=("-c:v", codec), seconds=3)
    (shot,) = decode(path)
    reference = ffmpeg_frames(path, 96, 64)
    assert shot.frames.shape == reference.shape == (72, 64, 96, 3)
    assert difference(shot.frames, reference).max() <= 1


def test_a_video_that_starts_late_or_before_zero(tmp_path: Path) -> None:
    for shift in ("3", "-0.1"):
        path = make_video(tmp_path / f"{shift}.mp4", "-output_ts_offset", shift, "-avoid_negative_ts", "disabled")
        (shot,) = decode(path)
        np.testing.assert_allclose(np.diff(shot.times), 1 / 24, atol=1e-5)
        assert difference(shot.frames, ffmpeg_frames(path, 96, 64)).max() <= 1


def test_a_video_of_one_frame_gives_one_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", "-frames:v", "1")
    (shot,) = decode(path)
    assert shot.frames.shape == (1, 64, 96, 3)
    assert shot.times == [0.0]


def test_long_shots_are_divided_and_no_frame_is_lost(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", seconds=3)
    shots = decode(path, max_shot_seconds=0.7)
    assert [len(shot.frames) for shot in shots] == [16, 16, 16, 16, 8]
    (whole,) = decode(path)
    np.testing.assert_array_equal(np.concatenate([shot.frames for shot in shots]), whole.frames)
    assert [time for shot in shots for time in shot.times] == whole.times


def test_a_picture_that_is_held_does_not_make_a_shot_longer_than_allowed(tmp_path: Path) -> None:
    """A slide show: a frame that stands for 20 s is many frames at a constant rate."""
    held = "setpts='if(gte(N,40),PTS+20/TB,PTS)'"
    path = make_video(tmp_path / "a.mp4", "-vf", held, "-fps_mode", "vfr", seconds=2)
    shots = decode(path, max_shot_seconds=2.0)
    assert sum(len(shot.frames) for shot in shots) > 40
    assert max(len(shot.frames) for shot in shots) <= 2 * shots[0].fps


def test_decoding_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", size="160x120")
    first, second = decode(path), decode(path)
    assert [shot.frames.tobytes() for shot in first] == [shot.frames.tobytes() for shot in second]


# probe


def test_facts_of_a_video(tmp_path: Path) -> None:
    facts = probe_video(make_video(tmp_path / "a.mp4", size="160x90", rate="30", seconds=2))
    assert (facts.width, facts.height, facts.num_frames, facts.fps) == (160, 90, 60, 30.0)
    assert (facts.duration, facts.codec, facts.rotation) == (2.0, "h264", 0)
    matroska = probe_video(make_video(tmp_path / "a.mkv", size="160x90", rate="30", seconds=2))
    assert (matroska.num_frames, matroska.fps, matroska.duration) == (0, 30.0, 2.0)


def test_facts_of_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.PNG")
    facts = probe_image(tmp_path / "a.PNG")
    assert (facts.width, facts.height, facts.num_frames, facts.fps, facts.codec) == (30, 20, 1, 0.0, "png")


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_a_title_that_is_not_utf_8_does_no_harm(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"a{suffix}", "-metadata", "title=XXXXXXXX")
    data = path.read_bytes()
    assert b"XXXXXXXX" in data
    path.write_bytes(data.replace(b"XXXXXXXX", b"caf\xe9 \xff\xfe!"))
    assert probe_video(path).width == 96
    assert len(decode(path)[0].frames) == 24


# what is refused


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with its index at the end."""
    return make_video(tmp_path_factory.mktemp("media") / "good.mp4", "-g", "12", seconds=2, size="192x128")


@pytest.fixture(scope="module")
def fast(good: Path) -> Path:
    """The same with its index in front."""
    ffmpeg("-i", good, "-c", "copy", "-movflags", "+faststart", path := good.with_name("fast.mp4"))
    return path


def middle_of_mdat(data: bytes) -> int:
    return (data.index(b"mdat") + len(data)) // 2


def cut_fast(good: Path, fast: Path) -> bytes:
    data = fast.read_bytes()
    return data[: len(data) // 2]


def cut_end(good: Path, fast: Path) -> bytes:
    data = good.read_bytes()
    return data[: len(data) // 2]


def flipped(good: Path, fast: Path) -> bytes:
    data = fast.read_bytes()
    return flip(data, middle_of_mdat(data), 200)


def playlist(good: Path, fast: Path) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{good.name}\n#EXT-X-ENDLIST\n".encode()


def concat_list(good: Path, fast: Path) -> bytes:
    return f"ffconcat version 1.0\nfile '{good.name}'\n".encode()


def sound(good: Path, fast: Path) -> bytes:
    path = good.with_name("sound.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", path)
    return path.read_bytes()


def picture(good: Path, fast: Path) -> bytes:
    Image.new("RGB", (64, 64), "red").save(sink := io.BytesIO(), "PNG")
    return sink.getvalue()


NO_MP4 = "is not a .mp4 file, whatever its name says"
DAMAGED = {
    "cut with the index in front": (cut_fast, "is damaged or cut off (Invalid NAL unit size"),
    "cut before the index": (cut_end, "can't be opened as video (Invalid data found"),
    "flipped bytes": (flipped, "is damaged or cut off ("),
    "empty": (lambda good, fast: b"", "is empty (0 bytes)"),
    "random": (lambda good, fast: np.random.default_rng(0).bytes(5000), NO_MP4),
    "random after a true head": (
        lambda good, fast: b"\0\0\0\x18ftypisom" + np.random.default_rng(0).bytes(5000),
        "can't be opened as video",
    ),
    "shorter than a head": (lambda good, fast: b"\0\0\0", NO_MP4),
    "text": (lambda good, fast: b"this is text\n" * 20, NO_MP4),
    "HLS playlist": (playlist, NO_MP4),
    "ffconcat list": (concat_list, NO_MP4),
    "sound only": (sound, "has no video stream"),
    "image": (picture, NO_MP4),
    "another container": (
        lambda good, fast: make_video(good.with_name("other.mkv"), seconds=0.25).read_bytes(),
        NO_MP4,
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_sound_video_is_refused_with_the_reason(tmp_path: Path, good: Path, fast: Path, case: str) -> None:
    make, reason = DAMAGED[case]
    path = tmp_path / "clip.mp4"
    path.write_bytes(make(good, fast))
    with pytest.raises(Unreadable) as caught:
        decode(path)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi"])
@pytest.mark.parametrize("make", [playlist, concat_list])
def test_a_list_opens_no_other_file_under_any_name(
    tmp_path: Path, good: Path, fast: Path, suffix: str, make: Callable[..., bytes]
) -> None:
    shutil.copy(good, tmp_path)
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(make(good, fast))
    with pytest.raises(Unreadable):
        probe_video(path)
    with pytest.raises(Unreadable):  # nor does ffmpeg, were it asked
        list(read_frames(path, probe_video(good), (96, 64), NO_FILE_BEYOND))


@pytest.mark.parametrize("make", [playlist, concat_list])
def test_the_forced_demuxer_alone_keeps_a_list_out(
    tmp_path: Path, good: Path, fast: Path, make: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second line of defence holds without the first."""
    monkeypatch.setattr("framelora.media.probe.begins_as", lambda path: True)
    shutil.copy(good, tmp_path)
    path = tmp_path / "clip.mp4"
    path.write_bytes(make(good, fast))
    with pytest.raises(Unreadable, match="can't be opened as video"):
        probe_video(path)


def test_the_reason_of_a_damage_is_the_same_in_every_run(tmp_path: Path, good: Path, fast: Path) -> None:
    """It is written to an out: no address of memory, no order of threads."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(flipped(good, fast))
    reasons = set()
    for _ in range(6):
        with pytest.raises(Unreadable) as caught:
            times_of(path)
        reasons.add(str(caught.value))
    assert len(reasons) == 1
    assert "0x" not in reasons.pop()


def test_prefixes_with_addresses_are_cut_off() -> None:
    lines = b"[vist#0:0/h264 @ 0x5636] [dec:h264 @ 0x5640] Error submitting packet: [1] is bad.\nmore\n"
    assert first_reason(io.BytesIO(lines)) == "Error submitting packet: [1] is bad"


def test_sound_videos_pass_with_the_times_of_their_frames(good: Path, fast: Path) -> None:
    for path in (good, fast):
        np.testing.assert_allclose(times_of(path), np.arange(48) / 24, atol=1e-9)


# images


def test_damaged_and_misnamed_images_are_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "a.png")
    noise.save(tmp_path / "a.jpg")
    for name in ("a.png", "a.jpg"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(data[: len(data) // 2])
        with pytest.raises(Unreadable, match="can't be decoded"):
            open_image(tmp_path / f"cut_{name}")
    shutil.copy(tmp_path / "a.jpg", tmp_path / "jpeg.png")
    (tmp_path / "text.jpg").write_text("this is text")
    (tmp_path / "empty.webp").touch()
    for name in ("jpeg.png", "text.jpg", "empty.webp"):
        with pytest.raises(Unreadable, match=f"is not a {Path(name).suffix} image, whatever its name says"):
            open_image(tmp_path / name)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(OverLimit, match="is 64x64 pixels"):
        open_image(tmp_path / "a.png", Limits(max_pixels=1000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own, far above ours
    with pytest.raises(OverLimit, match="too many pixels"):
        open_image(tmp_path / "a.png")


def test_an_image_is_covered_and_cropped(tmp_path: Path) -> None:
    picture = np.zeros((100, 400, 3), np.uint8)
    picture[:, 200:] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    shot = decode_image(tmp_path / "a.png", BUCKETS, NO_FILE_BEYOND)
    assert shot.frames.shape == (1, 64, 96, 3)
    assert shot.frames[0, :, :44].max() == 0
    assert shot.frames[0, :, -44:].min() == 255


@pytest.mark.parametrize(
    ("name", "options"), [("a.webp", {"lossless": True}), ("a.JPG", {"quality": 95}), ("a.jpeg", {})]
)
def test_other_formats_of_images_are_decoded_to_the_same_picture(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    across, down = np.meshgrid(np.arange(192), np.arange(128))
    picture = np.stack([across, 2 * down, 255 - across], axis=-1).astype(np.uint8)
    for file, how in (("a.png", {}), (name, options)):
        Image.fromarray(picture).save(tmp_path / file, **how)
    facts = probe_image(tmp_path / name)
    assert (facts.width, facts.height, facts.codec) == (192, 128, "webp" if name == "a.webp" else "jpeg")
    wanted, shot = (decode_image(tmp_path / file, BUCKETS, NO_FILE_BEYOND) for file in ("a.png", name))
    assert shot.frames.shape == (1, 64, 96, 3)
    difference = np.abs(shot.frames.astype(int) - wanted.frames)
    assert difference.max() == 0 if name == "a.webp" else 0 < difference.mean() < 2


def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste("blue", (0, 0, 30, 40))  # stored: blue left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise: blue on top
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = open_image(tmp_path / "a.jpg")
    assert image.size == (40, 60)
    assert np.asarray(image)[10, 20, 2] > 128 > np.asarray(image)[50, 20, 2]
    facts = probe_image(tmp_path / "a.jpg")
    assert (facts.width, facts.height) == (40, 60)


def palette() -> Image.Image:
    image = Image.new("P", (16, 16))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (8, 0, 16, 16))
    return image


@pytest.mark.parametrize(
    ("image", "transparency"),
    [
        (palette(), bytes([0, 128])),
        (palette(), 0),
        (Image.new("RGB", (16, 16)), (0, 0, 0)),
        (Image.new("L", (16, 16)), 0),
        (Image.new("1", (16, 16)), 0),
    ],
)
def test_a_transparent_colour_of_a_png_is_alpha(
    tmp_path: Path, image: Image.Image, transparency: object, recwarn: pytest.WarningsRecorder
) -> None:
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "a.png", transparency=transparency)
    assert probe_image(tmp_path / "a.png").has_alpha
    assert not probe_image(tmp_path / "plain.png").has_alpha
    np.testing.assert_array_equal(*(np.asarray(open_image(tmp_path / name)) for name in ("a.png", "plain.png")))
    assert not recwarn.list


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_the_alpha_that_webm_stores_beside_the_picture_is_found(tmp_path: Path, codec: str) -> None:
    """Also by Matroska's spelling of the tag."""
    source = "testsrc2=size=64x64:rate=8:duration=0.25,format=yuva420p"
    encode = ("-f", "lavfi", "-i", source, "-c:v", codec, "-auto-alt-ref", "0")
    ffmpeg(*encode, "-pix_fmt", "yuva420p", tmp_path / "a.webm")
    ffmpeg("-i", tmp_path / "a.webm", "-c", "copy", tmp_path / "a.mkv")
    ffmpeg(*encode, "-pix_fmt", "yuv420p", tmp_path / "plain.webm")
    facts = {name: probe_video(tmp_path / name) for name in ("a.webm", "a.mkv", "plain.webm")}
    assert {name: fact.has_alpha for name, fact in facts.items()} == {
        "a.webm": True,
        "a.mkv": True,
        "plain.webm": False,
    }
    assert len(times_of(tmp_path / "a.webm")) == 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new("RGB", (16, 16), "white").convert(mode).save(tmp_path / name)
    image = open_image(tmp_path / name)
    assert image.mode == "RGB"
    assert np.asarray(image).min() > 250

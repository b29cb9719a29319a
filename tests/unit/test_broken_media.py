"""Broken and odd media: each ends as documented, within limits of time and memory, and takes nothing down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
from broken_media import H264, HDR, X265, build, clip, ffmpeg
from conftest import REPOSITORY, Project

from framelora.media.decode import decode_video
from framelora.media.frames import read_frames
from framelora.media.probe import NO_FILE_BEYOND, Limits, OverLimit, Unreadable, probe_video
from framelora.media.shots import Cutting

pytestmark = pytest.mark.slow


def work_through(paths: list[Path], timeout: float) -> list[dict[str, object]]:
    """The outcome of each file, and at the end the peak memory, from a process of its own."""
    worker = REPOSITORY / "tests/media_worker.py"
    names = "".join(f"{path}\n" for path in paths)
    done = subprocess.run(
        [sys.executable, worker],
        input=names,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    last = paths[min(len(outcomes), len(paths) - 1)]
    assert done.returncode == 0, f"{last}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    return outcomes


def test_every_file_of_the_corpus_ends_as_documented(tmp_path: Path) -> None:
    expected = build(tmp_path)
    *outcomes, end = work_through([tmp_path / name for name in expected], timeout=240)
    assert end["peak_mib"] < 1024
    cuts: list[bool] = []
    for (name, wanted), outcome in zip(expected.items(), outcomes, strict=True):
        if wanted == "refused or whole":  # what was cut off may be what nobody needs
            assert "reason" in outcome or outcome["frames"] == 8, name
            cuts.append("reason" in outcome)
        elif wanted.startswith("frames"):
            low, _, high = wanted.removeprefix("frames ").partition("-")
            assert "frames" in outcome, (name, outcome)
            assert int(low) <= int(str(outcome["frames"])) <= int(high or low), name
        else:
            assert str(outcome.get("reason")).startswith(wanted), (name, outcome)
    assert sum(cuts) > 0.9 * len(cuts) > 50


BOUNDED = ("sh", "-c", 'ulimit -v 4194304 -t 120; exec "$@"', "sh")  # KiB of address space, seconds of CPU time


def test_the_corpus_goes_through_the_gate_and_extract_in_one_project(
    make_project: Callable[..., Project],
) -> None:
    """What can't be read is left out and listed, whichever of the two sees it; nothing else is."""
    project = make_project(clips=(), pairs=(), data__root="corpus", data__images=True, extract__on_error="skip")
    (project.root / "corpus").mkdir()
    expected = build(project.root / "corpus")
    seen = {}
    for stage in ("captions", "extract"):
        run = project.run(*BOUNDED, sys.executable, "-m", f"stages.{stage}")
        assert "Traceback" not in run.stdout + run.stderr
        seen[stage] = run
    issues = pd.read_csv(project.root / "reports/captions/issues.csv", keep_default_na=False)
    refused = issues[issues.rule.isin(["unreadable", "unsupported-codec", "over-limit"])]
    assert set(refused.severity) == {"warning"}
    reasons = dict(zip(refused["where"], refused.message, strict=True))
    skipped = pd.read_csv(project.root / "reports/extract/skipped.csv")
    assert not set(reasons) & set(skipped.path)
    reasons |= dict(zip(skipped.path, skipped.reason, strict=True))
    sources = pd.read_parquet(project.root / "data/sources.parquet")
    frames = pd.read_parquet(project.root / "data/frames.parquet").groupby("content_id").num_frames.sum()
    kept = {row.path: int(frames.get(row.content_id, 0)) for row in sources.itertuples()}
    for name, wanted in expected.items():
        if name in reasons:
            assert not kept.get(name), name
            reason = wanted.partition(": ")[2] or {"frames 0": "holds nothing but black"}.get(wanted, "")
            assert wanted == "refused or whole" or (reason and reasons[name].startswith(reason)), (name, reasons[name])
        elif wanted == "refused or whole":
            assert kept[name] == 8, name
        else:
            low, _, high = wanted.removeprefix("frames ").partition("-")
            assert int(low) <= kept[name] <= int(high or low), name
    assert set(reasons) <= set(expected)


def mutated(data: bytes, number: int) -> bytes:
    """The data with a few mistakes: changed, inserted, removed or repeated bytes, or its end cut off."""
    random = np.random.default_rng(number)
    result = bytearray(data)
    header = data.index(b"mdat") if random.random() < 0.5 else len(data)  # half of them hit the boxes in front
    for _ in range(int(random.integers(1, 12))):
        place = int(random.integers(0, min(header, len(result))))
        match random.integers(5):
            case 0 | 1:
                result[place] = int(random.integers(256))
            case 2:
                result[place : place + 4] = random.bytes(4)
            case 3:
                result[place:place] = random.bytes(int(random.integers(1, 40)))
            case 4:
                del result[place : place + int(random.integers(1, 40))]
    return bytes(result[: int(random.integers(1, len(result)))] if random.random() < 0.1 else result)


def fuzz(folder: Path, count: int, timeout: float) -> None:
    good = clip(
        folder / "good.mp4", *H264, "-movflags", "+faststart", source="testsrc2=size=96x64:rate=24:duration=0.5"
    )
    data = good.read_bytes()
    paths = []
    for number in range(count):
        paths.append(folder / f"{number}.mp4")
        paths[-1].write_bytes(mutated(data, number))
    *outcomes, end = work_through(paths, timeout)
    assert len(outcomes) == count
    assert end["peak_mib"] < 1024
    assert 0 < sum("reason" in outcome for outcome in outcomes) < count


def test_a_hundred_mutations_of_a_video_take_nothing_down(tmp_path: Path) -> None:
    fuzz(tmp_path, 100, timeout=300)


@pytest.mark.nightly
def test_two_thousand_mutations_of_a_video_take_nothing_down(tmp_path: Path) -> None:
    fuzz(tmp_path, 2000, timeout=3000)


def decode(path: Path, limits: Limits = NO_FILE_BEYOND, **cutting: object) -> list[np.ndarray]:
    options = {"target_fps": 24.0, "buckets": ["96x64"], "limits": limits}
    settings = {"shot_threshold": 1e9, "max_shot_seconds": 1e4} | cutting
    return [shot.frames for shot in decode_video(path, cutting=Cutting(**settings), **options)]  # type: ignore[arg-type]


def test_limits_hold_against_what_the_header_does_not_say(tmp_path: Path) -> None:
    """Matroska has no count of frames."""
    path = clip(tmp_path / "a.mkv")
    with pytest.raises(OverLimit, match="goes on beyond 10 frames"):
        decode(path, Limits(max_frames=10))
    with pytest.raises(OverLimit, match=r"is 192x128 pixels; data.max_pixels is 10000"):
        decode(path, Limits(max_pixels=10_000))
    with pytest.raises(OverLimit, match="lasts 1 s"):
        decode(path, Limits(max_seconds=0.5))


def test_a_decoder_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "a.mp4")
    facts = probe_video(path)
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o755)
    monkeypatch.setattr("framelora.media.frames.imageio_ffmpeg.get_ffmpeg_exe", lambda: str(script))
    monkeypatch.setattr("framelora.media.frames.PATIENCE", 1.0)
    with pytest.raises(Unreadable, match=r"can't be decoded \(no frame in 1 s\)"):
        list(read_frames(path, facts, (96, 64), NO_FILE_BEYOND))


def test_a_slow_reader_is_no_decoder_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More frames than the pipe holds, so that the decoder is still there while its reader is busy."""
    path = clip(tmp_path / "a.mp4", source="testsrc2=size=512x384:rate=24:duration=2")
    monkeypatch.setattr("framelora.media.frames.PATIENCE", 1.0)
    times = []
    for moment, _ in read_frames(path, probe_video(path), (512, 384), NO_FILE_BEYOND):
        if len(times) in (0, 20):
            time.sleep(3)
        times.append(moment)
    assert len(times) == 48


STOPPED = """
import os, pathlib, signal, sys, threading
from framelora.media import frames, probe
frames.PATIENCE, frames.TICK = 2.0, 0.1
frames.imageio_ffmpeg.get_ffmpeg_exe = lambda: sys.argv[2]
path = pathlib.Path(sys.argv[1])
facts = probe.probe_video(path)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGSTOP)).start()
print(len(list(frames.read_frames(path, facts, (96, 64), probe.NO_FILE_BEYOND))))
"""


def test_the_time_in_which_a_process_is_stopped_does_not_count(tmp_path: Path) -> None:
    """It is stopped while it waits for the first frame, for longer than its patience."""
    path, resumed, script = clip(tmp_path / "a.mp4"), tmp_path / "resumed", tmp_path / "ffmpeg"
    real = imageio_ffmpeg.get_ffmpeg_exe()
    script.write_text(f'#!/bin/sh\nwhile [ ! -e {resumed} ]; do sleep 0.05; done\nexec {real} "$@"\n')
    script.chmod(0o755)
    command = [sys.executable, "-c", STOPPED, path, script]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        resumed.touch()
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "24\n")


def test_black_ends_a_shot_and_fades_are_trimmed(tmp_path: Path) -> None:
    """A second of picture that fades in and out over black, twice."""
    part = "testsrc2=size=96x64:rate=24:duration=2,fade=in:0:12,fade=out:36:12"
    path = tmp_path / "a.mp4"
    ffmpeg("-filter_complex", f"{part}[a];{part}[b];[a][b]concat", *H264, path)
    first, second = decode(path, black_level=8.0, trim_fades=True)
    assert 26 <= len(first) <= 36
    assert 26 <= len(second) <= 36
    assert min(frame.mean() for frame in first) > 0.6 * np.median([frame.mean() for frame in first])
    whole = decode(path, black_level=8.0)
    assert len(whole) == 2
    assert len(whole[0]) > len(first)
    assert [len(frames) for frames in decode(path)] == [96]


@pytest.mark.parametrize(
    ("detector", "threshold"), [("content", 27.0), ("adaptive", 3.0), ("histogram", 0.2), ("hash", 0.35)]
)
def test_every_detector_finds_a_hard_cut_at_its_frame(tmp_path: Path, detector: str, threshold: float) -> None:
    halves = "testsrc2=size=96x64:rate=24:duration=1.5[a];mandelbrot=size=96x64:rate=24,trim=duration=1[b];[a][b]concat"
    path = tmp_path / "a.mp4"
    ffmpeg("-filter_complex", halves, *H264, path)
    assert [len(frames) for frames in decode(path, detector=detector, shot_threshold=threshold)] == [36, 24]


def test_the_threshold_detector_cuts_where_the_picture_comes_back(tmp_path: Path) -> None:
    parts = "testsrc2=size=96x64:rate=24:duration=1[a];color=black:size=96x64:rate=24:duration=1[b];"
    path = tmp_path / "a.mp4"
    ffmpeg("-filter_complex", f"{parts}testsrc2=size=96x64:rate=24:duration=1[c];[a][b][c]concat=n=3", *H264, path)
    assert [len(frames) for frames in decode(path, detector="threshold", shot_threshold=12.0)] == [48, 24]


def test_interlaced_pictures_lose_their_combs(tmp_path: Path) -> None:
    moving = "testsrc2=size=96x64:rate=48:duration=1"
    flags = ("-flags", "+ildct+ilme", "-x264opts", "tff=1")
    path = clip(tmp_path / "a.mp4", "-vf", "tinterlace=interleave_top", *H264, *flags, source=moving)
    facts = probe_video(path)
    assert facts.interlaced
    plain = [
        frame
        for _, frame in read_frames(
            path, facts.__class__(**{**vars(facts), "interlaced": False}), (96, 64), NO_FILE_BEYOND
        )
    ]
    (frames,) = decode(path)
    combs = [np.abs(np.diff(np.stack(pictures).astype(int), 2, axis=1)).mean() for pictures in (frames, plain)]
    assert combs[0] < combs[1]


def test_hdr_is_tone_mapped(tmp_path: Path) -> None:
    """Reference white (203 cd/m2, 58 % of the PQ signal) comes out bright, not as the grey of its code value."""
    grey = "color=0x949494:size=96x64:rate=24:duration=0.25,format=yuv420p10le," + HDR
    path = clip(tmp_path / "a.mp4", *X265, source=grey)
    assert probe_video(path).transfer == "pq"
    (frames,) = decode(path)
    assert frames.mean() > 0x94 + 50
    assert np.ptp(frames.mean(axis=(0, 1, 2))) < 6  # grey stays grey

"""How fast extraction is beside ffmpeg that decodes and scales the same frames to nowhere, and what memory it takes.

python benchmarks/extract.py VIDEO [--bucket 512x320] [--workers 1 2] [--rounds 5]

A worker is a process that decodes, looks for cuts, and stores frames at 8 a second as the stage does; its ffmpeg and
the one that it is compared with have one decoding thread each. They take turns, and medians are printed: first of the
video as it is, then of 60 s of it, repeated as often as it takes. Memory: the peak of worker and decoder, for 10 s and
for 10 minutes of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg

from framelora.cells.overlap import WriteBehind
from framelora.cells.store import Cell, Store
from framelora.media.buckets import cover
from framelora.media.decode import decode_video
from framelora.media.lossless import encode_frames
from framelora.media.probe import NO_FILE_BEYOND, probe_video
from framelora.media.shots import Cutting

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def work(video: Path, bucket: str, folder: Path) -> None:
    """Extract a video into a store of its own; print what this process and its ffmpeg used."""
    store = Store(folder)
    cutting = Cutting(black_level=8.0, trim_fades=True)
    options = {"target_fps": 8.0, "buckets": [bucket], "limits": NO_FILE_BEYOND}
    before = used()[0]
    with WriteBehind() as behind:
        for number, shot in enumerate(decode_video(video, cutting=cutting, **options)):
            cell = Cell("benchmark", "", {"number": number})
            behind.put(lambda cell=cell, frames=shot.frames: store.put(cell, encode_frames(frames)))
    seconds, peaks = used()
    print(json.dumps([seconds - before, *peaks]), flush=True)


def used() -> tuple[float, list[float]]:
    """CPU seconds of this process and its children together, and the peak memory of each, in MiB."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage), [one.ru_maxrss / 1024 for one in usage]


def run_workers(video: Path, bucket: str, count: int) -> tuple[float, list[float]]:
    """Seconds until `count` workers have each extracted the video, without Python's start and end; CPU seconds, peak
    memory and ffmpeg's peak memory of one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, str(video), "--bucket", bucket, "--work"]
        workers = [
            subprocess.Popen([*command, f"{folder}/{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for number in range(count)
        ]
        for worker in workers:  # all have imported what they need
            assert worker.stdout is not None
            worker.stdout.readline()
        start = time.perf_counter()
        outputs = []
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            outputs.append(worker.stdout.readline())
        seconds = time.perf_counter() - start
        for worker in workers:
            worker.communicate()
        return seconds, json.loads(outputs[0])


def ffmpeg_alone(video: Path, width: int, height: int) -> tuple[float, float]:
    """Seconds and CPU seconds that ffmpeg takes to decode and scale the video to nowhere, with one thread."""
    scale = f"scale={width}:{height}:flags=bilinear,format=rgb24"
    options = ["-nostdin", "-loglevel", "error", "-threads", "1", "-filter_threads", "1", "-i", str(video)]
    before, start = used()[0], time.perf_counter()
    subprocess.run([FFMPEG, *options, "-an", "-vf", scale, "-f", "null", "-"], check=True)
    return time.perf_counter() - start, used()[0] - before


def compare(video: Path, bucket: str, counts: list[int], rounds: int) -> None:
    """Print the rates of ffmpeg alone and of extraction with each number of workers."""
    facts = probe_video(video)
    frames = facts.num_frames
    size = cover(facts.width, facts.height, tuple(map(int, bucket.split("x"))))
    alone: list[tuple[float, float]] = []
    extraction: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for _ in range(rounds):
        alone.append(ffmpeg_alone(video, *size))
        for count in counts:
            seconds, (cpu, *_) = run_workers(video, bucket, count)
            extraction[count].append((seconds, cpu))
    seconds, cpu = (statistics.median(column) for column in zip(*alone, strict=True))
    print(f"{frames} frames, medians of {rounds} rounds")
    print(
        f"  ffmpeg to nowhere, 1 thread  {frames / seconds:6.0f} frames/s  {1000 * cpu / frames:.2f} ms of CPU a frame"
    )
    for count, measured in extraction.items():
        wall, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
        ratios = [count * one[0] / other[0] for one, other in zip(alone, measured, strict=True)]
        rate = f"{count * frames / wall:6.0f} frames/s  {1000 * cpu / frames:.2f} ms of CPU a frame"
        print(f"  extraction, {count} worker(s)      {rate}  {statistics.median(ratios):.2f} of ffmpeg's rate")


def repeated(video: Path, seconds: float, folder: Path) -> Path:
    """The video, copied one after the other until it lasts so long."""
    times = int(seconds / probe_video(video).duration)
    path = folder / f"{seconds:g}.mp4"
    if path.exists():
        return path
    command = [
        FFMPEG,
        "-nostdin",
        "-loglevel",
        "error",
        "-stream_loop",
        str(times),
        "-i",
        str(video),
        "-t",
        str(seconds),
    ]
    subprocess.run([*command, "-an", "-c", "copy", str(path)], check=True)
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--bucket", default="512x320")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print("ready", flush=True)
        sys.stdin.readline()
        work(arguments.video, arguments.bucket, arguments.work)
        return
    facts = probe_video(arguments.video)
    print(f"{arguments.video.name}: {facts.width}x{facts.height}, {facts.codec}, {facts.fps:g} frames/s")
    print(f"frames of {arguments.bucket}")
    with tempfile.TemporaryDirectory() as folder:
        for video in (arguments.video, repeated(arguments.video, 60, Path(folder))):
            compare(video, arguments.bucket, arguments.workers, arguments.rounds)
        for seconds in (10, 60 * arguments.minutes):
            _, own, decoder = run_workers(repeated(arguments.video, seconds, Path(folder)), arguments.bucket, 1)[1]
            print(f"peak memory, {seconds:5g} s of video  {own:5.0f} MiB, its ffmpeg {decoder:.0f} MiB")


if __name__ == "__main__":
    main()

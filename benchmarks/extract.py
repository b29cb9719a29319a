"""How fast extraction is beside ffmpeg that decodes and scales the same frames to nowhere, and what memory it takes.

python benchmarks/extract.py VIDEO [--bucket 512x320] [--workers 1 2]

A worker is a process that decodes, looks for cuts, and stores frames at 8 a second as the stage does; its ffmpeg and
the one that it is compared with have one decoding thread each. Memory: the peak of worker and decoder, for
10 s and for 10 minutes of the video, repeated as often as it takes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg

from framelora.cells.store import Cell, Store
from framelora.media.buckets import cover
from framelora.media.decode import decode_video
from framelora.media.lossless import encode_frames
from framelora.media.probe import NO_FILE_BEYOND, probe_video
from framelora.media.shots import Cutting

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def work(video: Path, bucket: str, folder: Path) -> None:
    """Extract a video into a store of its own; print peak memory of this process and of ffmpeg, in MiB."""
    store = Store(folder)
    cutting = Cutting(black_level=8.0, trim_fades=True)
    options = {"target_fps": 8.0, "buckets": [bucket], "limits": NO_FILE_BEYOND}
    for number, shot in enumerate(decode_video(video, cutting=cutting, **options)):
        store.put(Cell("benchmark", "", {"number": number}), encode_frames(shot.frames))
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps(peaks))


def run_workers(video: Path, bucket: str, count: int) -> tuple[float, list[float]]:
    """Seconds until `count` workers have each extracted the video, without the start of Python; peaks of one."""
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
            outputs.append(worker.communicate()[0])
        return time.perf_counter() - start, json.loads(outputs[0])


def ffmpeg_alone(video: Path, width: int, height: int) -> float:
    """Seconds ffmpeg takes to decode and scale the video to nowhere, with one thread."""
    scale = f"scale={width}:{height}:flags=bilinear,format=rgb24"
    options = ["-nostdin", "-loglevel", "error", "-threads", "1", "-filter_threads", "1", "-i", str(video)]
    start = time.perf_counter()
    subprocess.run([FFMPEG, *options, "-an", "-vf", scale, "-f", "null", "-"], check=True)
    return time.perf_counter() - start


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
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print("ready", flush=True)
        sys.stdin.readline()
        work(arguments.video, arguments.bucket, arguments.work)
        return
    width, height = map(int, arguments.bucket.split("x"))
    facts = probe_video(arguments.video)
    size = cover(facts.width, facts.height, (width, height))
    with tempfile.TemporaryDirectory() as folder:
        video = repeated(arguments.video, 60, Path(folder))
        frames = 60 * facts.fps
        print(f"{arguments.video.name}: {facts.width}x{facts.height}, {facts.codec}, 60 s of it at {arguments.bucket}")
        alone = ffmpeg_alone(video, *size)
        print(f"ffmpeg to nowhere, 1 thread    {frames / alone:7.0f} frames/s")
        for count in arguments.workers:
            seconds, _ = run_workers(video, arguments.bucket, count)
            rate = count * frames / seconds
            print(f"extraction, {count} worker(s)        {rate:7.0f} frames/s  {rate * alone / frames:.2f} of ffmpeg's")
        for seconds in (10, 60 * arguments.minutes):
            own, decoder = run_workers(repeated(arguments.video, seconds, Path(folder)), arguments.bucket, 1)[1]
            print(f"peak memory, {seconds:5g} s of video  {own:5.0f} MiB, its ffmpeg {decoder:.0f} MiB")


if __name__ == "__main__":
    main()

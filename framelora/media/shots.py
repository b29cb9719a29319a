"""Where a shot ends: cuts that PySceneDetect finds, black, and the greatest length."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detector import FlashFilter, SceneDetector
from scenedetect.detectors import (
    AdaptiveDetector,
    ContentDetector,
    HashDetector,
    HistogramDetector,
    ThresholdDetector,
)

# Slack of a time stamp, in seconds: Matroska rounds to milliseconds.
ROUNDING = 1e-3
DETECTION_WIDTH = 128  # pixels; detectors see every n-th row and column of wider frames, whose means are the same
FADED = 0.7  # of a shot's median brightness: below it, frames next to black belong to a fade

Frame = NDArray[np.uint8]  # [H, W, 3] RGB


@dataclass(frozen=True)
class Shot:
    """Frames between two cuts at an even rate.

    Attributes:
        frames: `[F, H, W, 3]` RGB, 0..255.
        times: display time of each frame in the source, in seconds.
        fps: rate of the frames.
    """

    frames: NDArray[np.uint8]
    times: list[float]
    fps: float


@dataclass(frozen=True)
class Cutting:
    """How a video is cut into shots; the parameters of `extract` of the same names."""

    detector: Literal["content", "adaptive", "threshold", "histogram", "hash"] = "content"
    shot_threshold: float = 27.0
    min_shot_seconds: float = 0.5
    max_shot_seconds: float = 10.0
    black_level: float = 0.0
    trim_fades: bool = False

    def make_detector(self) -> SceneDetector:
        """PySceneDetect's detector of that name, cuts nearer than the least length to the one before ignored."""
        least = self.min_shot_seconds
        match self.detector:
            case "content":
                mode = FlashFilter.Mode.SUPPRESS
                return ContentDetector(threshold=self.shot_threshold, min_scene_len=least, filter_mode=mode)
            case "adaptive":
                return AdaptiveDetector(adaptive_threshold=self.shot_threshold, min_scene_len=least)
            case "threshold":  # the cut stands where the picture comes back
                return ThresholdDetector(threshold=self.shot_threshold, min_scene_len=least, fade_bias=1.0)
            case "histogram":
                return HistogramDetector(threshold=self.shot_threshold, min_scene_len=least)
            case "hash":
                return HashDetector(threshold=self.shot_threshold, min_scene_len=least)


class Ticks:
    """Counts at how many ticks of the target rate each frame is on a player's screen.

    Attributes:
        rate: the rate that results: the target, or a slower source's own.
    """

    def __init__(self, first: float, fps: float, target_fps: float) -> None:
        """
        Args:
            first: time of the first frame, in seconds.
            fps: the source's average rate; 0 when it has none.
            target_fps: rate to keep; a slower source keeps its own.
        """
        self.first = first
        self.frame_seconds = 1 / fps if fps > 0 else 0.0
        self.rate = min(fps, target_fps) if fps > 0 else target_fps
        self.counted = 0

    def until(self, following: float) -> int:
        """Ticks before the time of the following frame that no earlier frame had."""
        # The division lands beside an exact tick now and then: the comparison decides.
        number = max(self.counted, math.floor((following - ROUNDING - self.first) * self.rate) - 1)
        while self.first + number / self.rate + ROUNDING < following:
            number += 1
        number, self.counted = number - self.counted, number
        return number

    def rest(self, last: float) -> int:
        """Ticks of the last frame, which is shown for as long as the average one. A video has one tick at least."""
        ticks = self.until(last + self.frame_seconds)
        return ticks if self.counted else 1


@dataclass
class Seen:
    """A frame that has gone through the detector."""

    index: int
    time: float
    frame: Frame
    brightness: float
    ticks: int = 0


@dataclass
class Growing:
    """The shot that frames are being added to."""

    after_black: bool = False
    frames: list[Frame] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    brightness: list[float] = field(default_factory=list)

    def add(self, seen: Seen) -> None:
        self.frames.append(seen.frame)
        self.times.append(round(seen.time, 6))
        self.brightness.append(seen.brightness)

    def finish(self, fps: float, *, before_black: bool, trim_fades: bool) -> Iterator[Shot]:
        """The shot, without the frames of a fade from or to black; nothing when it has no frame."""
        if not self.frames:
            return
        first, last = 0, len(self.frames)
        if trim_fades:
            bright = [value >= FADED * float(np.median(self.brightness)) for value in self.brightness]
            first = bright.index(True) if self.after_black else 0
            last = last - bright[::-1].index(True) if before_black else last
        if first < last:
            yield Shot(np.stack(self.frames[first:last]), self.times[first:last], fps)


def cut_shots(frames: Iterable[tuple[float, Frame]], fps: float, target_fps: float, cutting: Cutting) -> Iterator[Shot]:
    """Cut a stream of frames into shots, each yielded as it ends; no more than one shot is held.

    Cuts are looked for on every frame of the source. A frame darker than `black_level` belongs to no shot and ends the
    one before it.

    Args:
        frames: time in seconds, ascending, and frame `[H, W, 3]` of a whole video.
        fps: its average rate; 0 when it has none.
        target_fps: rate of the frames to keep.
        cutting: the parameters.
    """
    detector = cutting.make_detector()
    clock = Fraction(fps).limit_denominator(1001) or Fraction(25)
    cuts: set[int] = set()
    waiting: deque[Seen] = deque()
    ticks: Ticks | None = None
    growing = Growing()

    def settle(seen: Seen) -> Iterator[Shot]:
        """Give a frame, about which all is known now, to its shot."""
        nonlocal growing
        assert ticks is not None
        black = seen.brightness < cutting.black_level
        due = {cut for cut in cuts if cut <= seen.index}
        if due or black:
            yield from growing.finish(ticks.rate, before_black=black, trim_fades=cutting.trim_fades)
            growing = Growing(after_black=black or (growing.after_black and not growing.frames))
            cuts.difference_update(due)
        for _ in range(0 if black else seen.ticks):
            if len(growing.frames) >= max(1, int(cutting.max_shot_seconds * ticks.rate)):
                yield from growing.finish(ticks.rate, before_black=False, trim_fades=cutting.trim_fades)
                growing = Growing()
            growing.add(seen)

    for index, (time, frame) in enumerate(frames):
        if ticks is None:
            ticks = Ticks(time, fps, target_fps)
        if waiting:
            waiting[-1].ticks = ticks.until(time)
        step = max(1, frame.shape[1] // DETECTION_WIDTH)
        small = np.asarray(cv2.cvtColor(frame[::step, ::step], cv2.COLOR_RGB2BGR), np.uint8)
        for cut in detector.process_frame(FrameTimecode(index, fps=clock), small):
            cuts.add(cut.frame_num)
        waiting.append(Seen(index, time, frame, luma(small)))
        while waiting[0].index < index - detector.event_buffer_length:
            yield from settle(waiting.popleft())
    if ticks is None:
        return
    for cut in detector.post_process(FrameTimecode(waiting[-1].index, fps=clock)):
        cuts.add(cut.frame_num)
    waiting[-1].ticks = ticks.rest(waiting[-1].time)
    for seen in waiting:
        yield from settle(seen)
    yield from growing.finish(ticks.rate, before_black=False, trim_fades=cutting.trim_fades)


def luma(bgr: Frame) -> float:
    """Mean brightness of a BGR frame, 0..255, with the weights of Rec. 601."""
    blue, green, red, _ = cv2.mean(bgr)
    return float(0.114 * blue + 0.587 * green + 0.299 * red)

"""All metrics of one rendered clip: the values of a row of the per-sample table."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from framelora.evaluation.limits import SMALLEST_SIDE
from framelora.evaluation.metrics import Frames, Values, ms_ssim, psnr, ssim, temporal_error
from framelora.evaluation.perceptual import st_lpips
from framelora.evaluation.temporal import BY_CLIP
from framelora.media.vmaf import vmaf

BY_FRAME: dict[str, Callable[[Frames, Frames], Values]] = {
    "psnr": psnr,
    "ssim": ssim,
    "ms_ssim": ms_ssim,
    "st_lpips": st_lpips,
    "vmaf": vmaf,
}


def measure(frames: Frames, truth: Frames, names: Iterable[str], *, middles: bool) -> dict[str, float | None]:
    """Compare a clip `[F, H, W, 3]` with the truth of equal shape.

    Args:
        frames: the clip.
        truth: the true frames; of an image pair only the first and the last are known and given.
        names: metrics of `catalogue.PER_SAMPLE`.
        middles: whether there are true middle frames; without them only the ends are compared.

    Returns:
        For each metric its mean over the middle frames, and as `NAME_mid` its value at the middle of them (the mean of
        two where their number is even); None where the frames are too small for it. Metrics of `temporal` have one
        value a clip and look at no truth. `ends_psnr` in any case.
    """
    ends: Frames = frames[[0, -1]]
    found: dict[str, float | None] = {}
    for name in names if middles else ():
        if name in BY_CLIP:
            found[name] = BY_CLIP[name](frames)
            continue
        if name == "temporal_error":
            found[name] = temporal_error(frames, truth)
            continue
        values = None
        if min(frames.shape[1:3]) >= SMALLEST_SIDE.get(name, 0):
            values = BY_FRAME[name](frames[1:-1], truth[1:-1])
        found[name] = None if values is None else float(values.mean())
        found[f"{name}_mid"] = None if values is None else float(middle(values))
    found["ends_psnr"] = float(psnr(ends, truth[[0, -1]]).mean())
    return found


def middle(values: Values) -> float:
    """The value of the frame in the middle, the mean of two where the number of frames is even."""
    last = len(values) - 1
    return float(values[last // 2 : (last + 1) // 2 + 1].mean())

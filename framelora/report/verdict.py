"""What the metrics say, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BASELINES = {
    "blend": "the linear blend of the two end frames",
    "flow_warp": "the end frames moved along their optical flow",
    "rife": "the interpolation network RIFE",
    "hold_first": "the first frame held still",
}
SMALLEST = 5e-4  # dB; what is nearer to zero is rounding
STILL_MOVES = 0.8  # share of the base's motion that has to be left where an adapter counts as steadier


@dataclass(frozen=True)
class Verdict:
    """One sentence, and what it says about the adapter."""

    tone: Literal["better", "worse", "unclear"]
    text: str


def count(number: int, noun: str) -> str:
    """A number with its noun, for example `1 window` and `2 windows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def signed(value: float, digits: int) -> str:
    """A number with its sign, a true minus, and no sign on zero."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "\N{MINUS SIGN}") if rounded else f"{0:.{digits}f}"


def decimals(low: float, high: float) -> int:
    """Decimals, in dB, that show on which side of zero the ends of an interval lie."""
    return 2 if min(abs(low), abs(high)) >= 0.01 or low == high == 0 else 4


def adapters_of(metrics: Mapping[str, float]) -> list[str]:
    """Names of the rendered adapters (`adapter_WEIGHT`) in `reports/metrics.json`, by weight."""
    names = [key.removeprefix("ends_psnr_") for key in metrics if key.startswith("ends_psnr_adapter_")]
    return sorted(names, key=weight_of)


def weight_of(method: str) -> float:
    """The weight in an adapter's name."""
    return float(method.removeprefix("adapter_"))


def verdicts(metrics: Mapping[str, float], clips: int) -> list[Verdict]:
    """Judge each adapter against the base, and the models against the baselines.

    Args:
        metrics: content of `reports/metrics.json`.
        clips: number of sources that the test windows are cut from.
    """
    windows = int(metrics["windows"])
    if not windows:
        pairs = int(metrics["image_pairs"])
        rendered = f"; {count(pairs, 'image pair')} rendered, which have no middles to measure" if pairs else ""
        return [Verdict("unclear", f"Not measured: there are no test windows{rendered}.")]
    adapters = adapters_of(metrics)
    where = f"{count(windows, 'window')} of {count(clips, 'clip')}"
    found = [against_base(metrics, adapter, clips, where) for adapter in adapters]
    return steadiness(metrics, adapters) + found + against_baselines(metrics, adapters)


def steadiness(metrics: Mapping[str, float], adapters: list[str]) -> list[Verdict]:
    """Name the weight that takes the most warp error while the clips still move, or say that there is none.

    Nothing where `warp_error` or `flow_magnitude` is not measured.
    """
    if "warp_error_base" not in metrics or not all(f"dynamics_{adapter}" in metrics for adapter in adapters):
        return []
    errors = {name: metrics[f"warp_error_{name}"] for name in ("base", *adapters)}
    moved = {name: metrics[f"dynamics_{name}"] for name in adapters}
    good = [name for name in adapters if errors[name] < errors["base"] and moved[name] >= STILL_MOVES]
    if not good:
        listed = "; ".join(f"{weight_of(name):g}: {errors[name]:.2f}, {100 * moved[name]:.0f} %" for name in adapters)
        text = (
            f"No rendered weight is steadier: none has less warp error than the base ({errors['base']:.2f} levels) and "
            f"{100 * STILL_MOVES:.0f} % of its motion (weight: warp error, motion left: {listed})."
        )
        return [Verdict("worse", text)]
    best = min(good, key=lambda name: errors[name])
    gain, low, high = (metrics[f"warp_error_gain_{best}{end}"] for end in ("", "_low", "_high"))
    text = (
        f"Steadier at weight {weight_of(best):g}: warp error {errors[best]:.2f} levels against the base's "
        f"{errors['base']:.2f}, with {100 * moved[best]:.0f} % of its motion left (less by {gain:.2f}, 95 % interval "
        f"{signed(low, 2)} to {signed(high, 2)})."
    )
    return [Verdict("better" if low > 0 else "unclear", text)]


def against_base(metrics: Mapping[str, float], adapter: str, clips: int, where: str) -> Verdict:
    """The paired difference of one adapter to the base; clear when its 95 % interval leaves out zero."""
    gain, low, high = (metrics[f"psnr_gain_{adapter}{end}"] for end in ("", "_low", "_high"))
    digits = decimals(low, high)
    start = f"{adapter}: {signed(gain, digits)} dB PSNR against the base on {where}"
    if max(abs(gain), abs(low), abs(high)) < SMALLEST:
        return Verdict("unclear", f"{start}: no improvement, the adapter leaves the base as it is.")
    if clips == 1:
        return Verdict("unclear", f"{start}: one clip is too little to tell.")
    start += f" (95 % interval {signed(low, digits)} to {signed(high, digits)})"
    if low > 0:
        return Verdict("better", f"{start}: better than the base.")
    if high < 0:
        return Verdict("worse", f"{start}: worse than the base.")
    return Verdict("unclear", f"{start}: no clear difference.")


def against_baselines(metrics: Mapping[str, float], adapters: list[str]) -> list[Verdict]:
    """Say which models lose to the linear blend and to the best of the baselines, and whether the VAE alone would."""
    baselines = {name: metrics[f"psnr_{name}"] for name in BASELINES if f"psnr_{name}" in metrics}
    scores = {name: metrics[f"psnr_{name}"] for name in ("base", *adapters)}
    found = []
    best = max(baselines, key=lambda name: baselines[name], default="")
    for name in dict.fromkeys(name for name in ("blend", best) if name in baselines):
        losers = [model for model, psnr in scores.items() if round(psnr, 2) < round(baselines[name], 2)]
        if losers:
            listed = [f"{'The base' if model == 'base' else model} ({scores[model]:.2f} dB)" for model in losers]
            subject = " and ".join([", ".join(listed[:-1])] * (len(listed) > 1) + listed[-1:])
            verb = "loses" if len(losers) == 1 else "lose"
            found.append(Verdict("worse", f"{subject} {verb} to {BASELINES[name]} ({baselines[name]:.2f} dB PSNR)."))
    ceiling = metrics["psnr_truth_vae"]
    if found and ceiling < baselines[best]:
        text = f"So does the truth itself once through the VAE ({ceiling:.2f} dB): the VAE limits these scores."
        found.append(Verdict("worse", text))
    return found

"""Train tiny-easyanimate's transformer on captioned clips and write it to `BASE/transformer`, in half precision.

The objective is EasyAnimate's flow matching: x_t = (1 - sigma) x + sigma eps, sigma from the scheduler's list, high
ones more often than low ones, and the transformer predicts eps - x. It is an inpaint model (-InP): half of the clips
are given nothing (zeros: text to video), the others their first frame, or the first and the last. Captions are replaced
by the empty one with probability 0.1. The scenes are those of `crossings.py`; a fifth of all captions is never trained
on.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from crossings import crossing_scene, draw_names, pale
from diffusers import AutoencoderKLMagvit, EasyAnimateTransformer3DModel, FlowMatchEulerDiscreteScheduler
from layout import SEED, save_part
from layout_easyanimate import BASE, FRAMES, TEXT_LENGTH, build_transformer
from loop import Minutes, SaveEvery, Schedule, one_thread, train
from torch import Tensor, nn
from train_codec import to_signal
from transformers import AutoTokenizer, BertModel
from world import build_textures, photograph_folder, render

CAPTION_DROPOUT = 0.1
SHIFT = 3.0  # sigma = s u / (1 + (s - 1) u), u uniform: more of the high noise, where colour and path are decided
GIVEN = ("nothing", "nothing", "nothing", "first", "first", "both")  # what clip 0, 1, 2, ... is given
Item = dict[str, Tensor]


class Encoders:
    """The frozen codec and text encoder of a base folder."""

    def __init__(self, base: Path) -> None:
        self.vae = AutoencoderKLMagvit.from_pretrained(base / "vae").eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
        self.bert = BertModel.from_pretrained(base / "text_encoder").eval().requires_grad_(False)
        self.scaling_factor = float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def latents(self, signal: Tensor) -> Tensor:
        """Posterior mode of a clip `[F, 3, H, W]` in -1..1, scaled: `[C, f, h, w]`."""
        return self.vae.encode(signal.transpose(0, 1)[None]).latent_dist.mode()[0] * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents `[C, f, h, w]` to pixels `[F, 3, H, W]` in -1..1."""
        return self.vae.decode(latents[None] / self.scaling_factor).sample[0].transpose(0, 1).clamp(-1, 1)

    @torch.no_grad()
    def text(self, caption: str) -> Tensor:
        """The last hidden states of a caption, padded: `[32, D]`."""
        tokens = self.tokenizer(caption, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt")
        return self.bert(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state[0]

    def given(self, signal: Tensor, what: str) -> Tensor:
        """What the model is given of a clip: mask (1 where kept) and latents of the masked clip, `[1 + C, f, h, w]`.

        Hidden frames are -1; mask and latents are multiplied by the scaling factor, as in EasyAnimate.
        `nothing` is zeros.
        """
        frames, _, height, width = signal.shape
        if what == "nothing":
            ratio = self.vae.spatial_compression_ratio
            return torch.zeros(1 + self.vae.config.latent_channels, frames, height // ratio, width // ratio)
        kept = [0] if what == "first" else [0, frames - 1]
        masked = torch.full_like(signal, -1.0)
        masked[kept] = signal[kept]
        latents = self.latents(masked)
        mask = torch.zeros_like(latents[:1])
        mask[:, kept] = 1.0
        return torch.cat([mask * self.scaling_factor, latents])


def draw_clip(index: int, textures: list[np.ndarray], encoders: Encoders, seed: int, held_out: bool = False) -> Item:
    """Clip number `index`: `x0` `[C, f, h, w]` scaled latents, `text` `[32, D]`, `given` `[1 + C, f, h, w]`."""
    rng = np.random.default_rng([seed, index])
    scene = crossing_scene(rng, len(textures), *draw_names(rng, held_out))
    signal = to_signal(render(scene, np.linspace(0, 1, FRAMES), textures))
    given = encoders.given(signal, GIVEN[index % len(GIVEN)])
    return {"x0": encoders.latents(signal), "text": encoders.text(scene.caption), "given": given}


def parameter_groups(transformer: nn.Module) -> list[dict[str, object]]:
    """The matrices of attention and feed-forward for Muon, the rest for Adam."""
    matrices, rest = [], []
    for name, parameter in transformer.named_parameters():
        inside = parameter.ndim == 2 and name.startswith("transformer_blocks.") and ".norm" not in name
        (matrices if inside else rest).append(parameter)
    return [{"params": rest, "share": 1.0}, {"params": matrices, "share": 3.0, "matrices": True}]


def cut_batch(pool: list[Item], size: int, rng: np.random.Generator, whole: bool) -> Item:
    """Clips of the pool, stacked: half as many of all nine frames, or of every second frame.

    The codec treats each frame by itself, so that a clip's latents are those of its frames.
    """
    chosen = [pool[int(place)] for place in rng.integers(len(pool), size=size // 2 if whole else size)]
    batch = {name: torch.stack([item[name] for item in chosen]) for name in chosen[0]}
    if not whole:
        batch |= {name: batch[name][:, :, ::2] for name in ("x0", "given")}
    return batch


def flow_loss(
    transformer: EasyAnimateTransformer3DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    batch: Item,
    empty: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Mean of |F - (eps - x)|^2 over a batch, all draws from `generator`."""
    x0 = batch["x0"]
    uniform = torch.rand(len(x0), generator=generator)
    shifted = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    places = ((1 - shifted) * len(scheduler.timesteps)).long().clamp(max=len(scheduler.timesteps) - 1)
    sigma = scheduler.sigmas[places].view(-1, 1, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=generator)
    dropped = (torch.rand(len(x0), generator=generator) < CAPTION_DROPOUT).view(-1, 1, 1)
    output = transformer(
        (1 - sigma) * x0 + sigma * noise,
        scheduler.timesteps[places],
        encoder_hidden_states=torch.where(dropped, empty, batch["text"]),
        inpaint_latents=batch["given"],
    ).sample.float()
    return (output - (noise - x0)).square().mean()


def main(
    base: Path = BASE,
    steps: int = 3000,
    minutes: Minutes = 0,
    batch_size: int = 8,
    peak: float = 1e-3,
    pool_size: int = 1200,
    first_pool: Annotated[int, typer.Option(help="clips made before the first step")] = 48,
    refresh: Annotated[int, typer.Option(help="steps between new clips")] = 4,
    seed: int = SEED,
    bf16: Annotated[bool, typer.Option(help="autocast the forward pass to bfloat16")] = True,
    resume: Annotated[int, typer.Option(help="above 0: go on from BASE/transformer, with the clips of this run")] = 0,
    save_every: SaveEvery = 100,
) -> None:
    """Train for `steps` steps, or for `minutes` when given (then the run is repeatable only by its step count)."""
    one_thread()
    textures = pale(build_textures(seed, photographs=photograph_folder()))
    encoders = Encoders(base)
    empty = encoders.text("")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler")
    if resume:
        path = base / "transformer"
        transformer = EasyAnimateTransformer3DModel.from_pretrained(path, torch_dtype=torch.float32)
    else:
        transformer = build_transformer(seed)
    transformer.train()
    stream = seed + 7 * resume
    generator, rng = torch.Generator().manual_seed(stream), np.random.default_rng(stream + 2)
    pool = [draw_clip(index, textures, encoders, stream) for index in range(first_pool)]
    drawn = len(pool)

    def loss(step: int, progress: float) -> Tensor:
        nonlocal drawn
        if step % refresh == 0:
            pool.append(draw_clip(drawn, textures, encoders, stream))
            del pool[:-pool_size]
            drawn += 1
        batch = cut_batch(pool, batch_size, rng, whole=step % 4 == 3)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return flow_loss(transformer, scheduler, batch, empty, generator)

    def save(average: nn.Module) -> None:
        save_part(copy.deepcopy(average).half(), base / "transformer")

    taken = train(
        transformer, parameter_groups(transformer), loss, save, Schedule(steps, peak, minutes, save_every, clip=1.0)
    )
    print(f"transformer: {taken} steps, {drawn} clips", flush=True)


if __name__ == "__main__":
    typer.run(main)

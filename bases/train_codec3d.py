"""Fit tiny-easyanimate's causal codec on frames of the procedural world and write it to `BASE/vae`.

A linear codec (2x2 patches to 4 channels and back, with neighbours) is fitted by gradient descent
and written into the weights of `AutoencoderKLMagvit`, whose residual branches are zero. Each causal convolution uses
its newest tap in time only, so that a frame depends on itself alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from diffusers import AutoencoderKLMagvit
from layout import SEED, save_part
from layout_easyanimate import BASE, build_vae
from loop import one_thread
from torch import Tensor, nn
from torch.nn import functional
from train_codec import AMPLITUDE, POSTERIOR_LOG_VARIANCE, LinearCodec, components, fit_linear, frames_for_fit
from world import build_textures, photograph_folder

SCALE = 1e-3  # the square root of the norms' eps


class HalfCodec(LinearCodec):
    """Frames to latents `[N, 4, H/2, W/2]` and back."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(12, 4, 3, padding=1)
        self.expand = nn.Conv2d(4, 24, 3, padding=1)
        self.sharpen = nn.Conv2d(24, 16, 3, padding=1, bias=False)
        self.paint = nn.Conv2d(16, 3, 3, padding=1)

    def encode(self, signal: Tensor) -> Tensor:
        """Signals to latents."""
        return self.squeeze(functional.pixel_unshuffle(signal, 2))

    def details(self, latents: Tensor) -> Tensor:
        """What the decoder's last convolution reads, `[N, 16, H, W]`."""
        return self.sharpen(functional.interpolate(self.expand(latents), scale_factor=2.0))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to signals."""
        return self.paint(self.details(latents))

    @torch.no_grad()
    def start_at_components(self, data: Tensor) -> None:
        """Let the encoder give the principal components of 2x2 patches."""
        self.squeeze.weight.mul_(0.2)[..., 1, 1] += components(data, 2)[:4].flip(0)

    def rate(self, step: int, steps: int) -> float:
        """Linear decay."""
        return 4e-3 * (1 - step / steps)


def newest(kernel: Tensor) -> Tensor:
    """A spatial kernel `[O, I, 3, 3]` as a causal one `[O, I, 3, 3, 3]` that reads the newest frame only."""
    return functional.pad(kernel[:, :, None], (0, 0, 0, 0, 2, 0))


def pairs(weight: Tensor, dim: int = 0) -> Tensor:
    """Each entry along `dim` followed by its opposite."""
    return torch.stack([weight, -weight], dim=dim + 1).flatten(dim, dim + 1)


@torch.no_grad()
def transplant(codec: HalfCodec, vae: AutoencoderKLMagvit, data: Tensor) -> None:
    """Write the linear codec into a codec built by `build_vae`; latents get the standard deviation 1/scaling_factor.

    In front of both last norms a signal s is a pair (a s, -a s), of mean 0 in its group, with a s far below the square
    root of the norm's eps: there the norm is a constant factor, and silu(z) - silu(-z) = z.
    """
    encoder, decoder = vae.encoder, vae.decoder
    for name, parameter in vae.named_parameters():
        if ".convs." not in name or ".conv2." in name:
            parameter.zero_()  # residual branches end in zero; the linear path is written below
    for norm in (encoder.conv_norm_out, decoder.conv_norm_out):
        norm.weight.fill_(1.0)

    latents = codec.encode(data)
    gain = 1 / (vae.config.scaling_factor * float(latents.std()))
    centre = latents.mean(dim=(0, 2, 3), keepdim=True)
    encoder.conv_in.weight[:3, :, 2, 1, 1] = torch.eye(3)
    down = encoder.down_blocks[0].downsampler.conv
    for index in range(12):
        colour, row, column = index // 4, index % 4 // 2, index % 2
        down.weight[index, colour, 2, row, column] = 1.0
    shortcut = encoder.down_blocks[1].convs[0].shortcut
    shortcut.weight.zero_()[:, :12, 0, 0, 0] = pairs(torch.eye(12) * AMPLITUDE * SCALE)
    shortcut.bias.zero_()
    encoder.conv_out.weight[:4] = newest(pairs(codec.squeeze.weight * (gain / AMPLITUDE), dim=1))
    encoder.conv_out.bias[:4] = (codec.squeeze.bias - centre.flatten()) * gain
    vae.quant_conv.weight[:4, :4, 0, 0, 0] = torch.eye(4)
    vae.quant_conv.bias[4:] = POSTERIOR_LOG_VARIANCE

    vae.post_quant_conv.weight[..., 0, 0, 0] = torch.eye(4)
    decoder.conv_in.weight.copy_(newest(codec.expand.weight / gain))
    decoder.conv_in.bias.copy_(codec.expand.bias + codec.expand.weight.sum((2, 3)) @ centre.flatten())
    sizes = codec.details(latents).std(dim=(0, 2, 3))
    decoder.up_blocks[0].upsampler.conv.weight[: len(sizes)] = newest(codec.sharpen.weight)
    shortcut = decoder.up_blocks[1].convs[0].shortcut
    shortcut.weight.zero_()[:, : len(sizes), 0, 0, 0] = pairs(torch.diag(AMPLITUDE * SCALE / sizes))
    shortcut.bias.zero_()
    decoder.conv_out.weight.copy_(newest(pairs(codec.paint.weight * (sizes / AMPLITUDE)[:, None, None], dim=1)))
    decoder.conv_out.bias.copy_(codec.paint.bias)


def main(base: Path = BASE, linear_steps: int = 2000, seed: int = SEED) -> None:
    """Fit the linear codec and write it into the network."""
    one_thread()
    data = frames_for_fit(build_textures(seed, photographs=photograph_folder()), 800, seed)
    vae = build_vae(seed)
    transplant(fit_linear(HalfCodec, data, linear_steps, seed), vae, data)
    save_part(vae, base / "vae")
    print(f"codec: {linear_steps} linear steps", flush=True)


if __name__ == "__main__":
    typer.run(main)

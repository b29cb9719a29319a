"""Framer's trajectory ControlNet: steers the UNet by heatmaps of points that move along given tracks.

Names and shapes follow the published checkpoint (aim-uofa/Framer, `models_diffusers/controlnet_svd.py`): the encoder
half of the UNet, a small convolutional stack on the heatmaps, and a 1x1 convolution for each residual. The first and
the last layer of a new one give zero, so it starts by changing nothing (Zhang et al. 2023, arXiv 2302.05543).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, UNetSpatioTemporalConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional

from framelora.families.framer.networks.unet import FramerUNet

# What the UNet has and its encoder half has not.
DECODER = ("up_blocks", "conv_norm_out", "conv_act", "conv_out")


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """A convolution whose weights and bias are zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class HintEmbedding(nn.Module):
    """Heatmaps `[N, 3, H, W]` to features of the latents' size: each width after the first halves the sides."""

    def __init__(self, out_channels: int, conditioning_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(conditioning_channels, widths[0], kernel_size=3, padding=1)
        self.blocks = nn.ModuleList()
        for width, wider in itertools.pairwise(widths):
            self.blocks.append(nn.Conv2d(width, width, kernel_size=3, padding=1))
            self.blocks.append(nn.Conv2d(width, wider, kernel_size=3, padding=1, stride=2))
        self.conv_out = zeroed(nn.Conv2d(widths[-1], out_channels, kernel_size=3, padding=1))

    def forward(self, hints: Tensor) -> Tensor:
        """`[N, 3, H, W]`, 0..255 as the heatmaps are, to `[N, C, h, w]`."""
        features = functional.silu(self.conv_in(hints))
        for block in self.blocks:
            features = functional.silu(block(features))
        return self.conv_out(features)


class TrajectoryControlNet(UNetSpatioTemporalConditionModel, ModelMixin, ConfigMixin):
    """The encoder half of a Framer UNet with an input for heatmaps; its outputs are residuals for the UNet."""

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 9,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types: tuple[str, ...] = (
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
        ),
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int = 768,
        layers_per_block: int | tuple[int, ...] = 2,
        cross_attention_dim: int | tuple[int, ...] = 1024,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20),
        num_frames: int = 25,
        conditioning_channels: int = 3,
        conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256),
        with_id_feature: bool = False,
        feature_channels: int = 160,
        feature_out_channels: tuple[int, ...] = (160, 160, 256, 256),
    ) -> None:
        """
        Args:
            with_id_feature: Framer's switch for point embeddings, which its own code refuses; so does this one. The two
                arguments after it belong to it; they are here because published configurations name them.
            conditioning_embedding_out_channels: widths of the stack on the heatmaps; n of them shrink by 2^(n-1), which
                must be what the VAE shrinks by.

        The arguments before are those of `FramerUNet`.

        Raises:
            ValueError: `with_id_feature` is set.
        """
        if with_id_feature:
            raise ValueError(
                "a ControlNet with point embeddings (with_id_feature) is not supported, as in Framer itself"
            )
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            addition_time_embed_dim=addition_time_embed_dim,
            projection_class_embeddings_input_dim=projection_class_embeddings_input_dim,
            layers_per_block=layers_per_block,
            cross_attention_dim=cross_attention_dim,
            transformer_layers_per_block=transformer_layers_per_block,
            num_attention_heads=num_attention_heads,
            num_frames=num_frames,
        )
        for part in DECODER:
            delattr(self, part)
        self.controlnet_cond_embedding = HintEmbedding(
            block_out_channels[0], conditioning_channels, tuple(conditioning_embedding_out_channels)
        )
        widths = [block_out_channels[0]]  # of the skip connections: one from conv_in, then those of each block
        for number, (block, width) in enumerate(zip(self.down_blocks, block_out_channels, strict=True)):
            is_last = number == len(block_out_channels) - 1
            widths += [width] * (len(block.resnets) + (0 if is_last else 1))
        self.controlnet_down_blocks = nn.ModuleList(zeroed(nn.Conv2d(width, width, kernel_size=1)) for width in widths)
        self.controlnet_mid_block = zeroed(nn.Conv2d(widths[-1], widths[-1], kernel_size=1))

    @classmethod
    def from_unet(cls, unet: FramerUNet, **options: Any) -> TrajectoryControlNet:
        """A new ControlNet with the weights of a UNet's encoder half; at first its residuals are all zero.

        The stack on the heatmaps is random and drawn from torch's global generator.

        Args:
            unet: the denoiser it will steer.
            options: arguments of the class that the UNet does not tell, for example
                `conditioning_embedding_out_channels`.
        """
        config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
        controlnet = cls(**config | options)
        if controlnet.dtype != unet.dtype:
            controlnet = controlnet.to(unet.dtype)
        weights = {name: tensor for name, tensor in unet.state_dict().items() if name in controlnet.state_dict()}
        controlnet.load_state_dict(weights, strict=False)
        return controlnet.train(unet.training)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
    ) -> tuple[list[Tensor], Tensor]:
        """The residuals that steer the UNet.

        Args:
            sample, timestep, encoder_hidden_states, added_time_ids: what the UNet is given.
            controlnet_cond: heatmaps `[B, F, 3, H, W]`, 0..255.
            conditioning_scale: factor of all residuals.

        Returns:
            The residuals of the skip connections and that of the middle block, each `[B*F, C, h, w]`.
        """
        batch_size, num_frames = sample.shape[:2]
        time = self.time_embedding(self.time_proj(timestep.expand(batch_size)).to(sample.dtype))
        ids = self.add_time_proj(added_time_ids.flatten()).reshape(batch_size, -1)
        embedding = (time + self.add_embedding(ids.to(time.dtype))).repeat_interleave(num_frames, dim=0)
        shared = {
            "temb": embedding,
            "image_only_indicator": torch.zeros(batch_size, num_frames, dtype=sample.dtype, device=sample.device),
        }
        attended = shared | {"encoder_hidden_states": encoder_hidden_states.repeat_interleave(num_frames, dim=0)}

        hidden = self.conv_in(sample.flatten(0, 1))
        hidden = hidden + self.controlnet_cond_embedding(controlnet_cond.flatten(0, 1).to(hidden.dtype))
        skips = [hidden]
        for block in self.down_blocks:
            has_attention = getattr(block, "has_cross_attention", False)
            hidden, made = block(hidden_states=hidden, **(attended if has_attention else shared))
            skips += made
        hidden = self.mid_block(hidden_states=hidden, **attended)

        down = [
            layer(skip) * conditioning_scale for layer, skip in zip(self.controlnet_down_blocks, skips, strict=True)
        ]
        return down, self.controlnet_mid_block(hidden) * conditioning_scale


class SteeredUNet(nn.Module):
    """A UNet and its ControlNet as one network, so that one forward pass of training or rendering runs both.

    Either may be wrapped by peft. Without heatmaps it is the UNet alone.
    """

    def __init__(self, unet: nn.Module, controlnet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory in the backward pass of both networks."""
        for network in (self.unet, self.controlnet):
            network.enable_gradient_checkpointing()  # type: ignore[operator]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        hints: Tensor | None = None,
        conditioning_scale: float = 1.0,
    ) -> Any:
        """The UNet's output, steered by heatmaps `[B, F, 3, H, W]` where they are given; else as `FramerUNet`."""
        conditions = {"encoder_hidden_states": encoder_hidden_states, "added_time_ids": added_time_ids}
        if hints is None:
            return self.unet(sample, timestep, **conditions)
        down, mid = self.controlnet(
            sample, timestep, **conditions, controlnet_cond=hints, conditioning_scale=conditioning_scale
        )
        return self.unet(
            sample,
            timestep,
            **conditions,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        )


def load_controlnet(base: Path, dtype: torch.dtype = torch.float32) -> TrajectoryControlNet:
    """Load the trajectory ControlNet of a base model folder (`base/controlnet`).

    Raises:
        FileNotFoundError: the base has none.
    """
    if not (base / "controlnet/config.json").is_file():
        raise FileNotFoundError(base / "controlnet")
    return TrajectoryControlNet.from_pretrained(base / "controlnet", torch_dtype=dtype, local_files_only=True)


def starting_controlnet(
    unet: FramerUNet, base: Path, dtype: torch.dtype, vae_factor: int, seed: int
) -> TrajectoryControlNet:
    """The ControlNet that training begins with: the base's own, or a new one (drawn from the seed)."""
    try:
        return load_controlnet(base, dtype)
    except FileNotFoundError:
        network = new_controlnet(unet, vae_factor, seed)
        return network if network.dtype == dtype else network.to(dtype)


def new_controlnet(unet: FramerUNet, vae_factor: int, seed: int) -> TrajectoryControlNet:
    """A ControlNet to train from nothing, on a UNet whose base has none.

    Args:
        unet: the denoiser it will steer.
        vae_factor: pixels to a latent along one side (a power of 2); Framer's published one has 8.
        seed: seed of the random part.

    Raises:
        ValueError: no stack of Framer's widths (16, 32, 96, 256) shrinks by this factor.
    """
    widths = (16, 32, 96, 256)
    halvings = vae_factor.bit_length() - 1
    if 2**halvings != vae_factor or not 0 <= halvings < len(widths):
        raise ValueError(f"no ControlNet for a VAE that shrinks by {vae_factor}")
    torch.manual_seed(seed)
    return TrajectoryControlNet.from_unet(unet, conditioning_embedding_out_channels=widths[: halvings + 1])

"""Networks in less memory: float8 weights compute what rounded weights compute, and offloading changes nothing."""

from __future__ import annotations

import copy
import sys
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from easyanimate_base import make_base, make_transformer
from peft.tuners.lora import Linear as LoraLinear
from test_adapters import make_state
from torch import Tensor, nn

from framelora.adapters.live import EXACT, hold_in_float8, put_on
from framelora.families.easyanimate import encode, prompts
from framelora.families.easyanimate.codec import TextEncoder
from framelora.families.easyanimate.networks.memory import Placement
from framelora.families.easyanimate.render import Renderer
from framelora.params import load_params
from framelora.training.networks import build_networks

CPU = torch.device("cpu")


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "hidden_states": torch.randn(1, 4, 2, 8, 8, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 6, 16, generator=generator),
    }


def rounded(network: nn.Module) -> nn.Module:
    """A copy whose weights went through float8 once: what the stored layers are to compute."""
    other = copy.deepcopy(network)
    for name, part in other.named_modules():
        if type(part) is nn.Linear and not EXACT.search(name):
            for parameter in part.parameters():
                parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    return other


def test_float8_layers_compute_what_rounded_weights_compute_and_adapters_stay_exact() -> None:
    model = put_on(make_transformer(), make_state(1, strength=0.5))
    exact = model(**inputs()).sample
    expected = rounded(model)(**inputs()).sample
    assert hold_in_float8(model, torch.float32) > 20
    for name, part in model.named_modules():
        if isinstance(part, LoraLinear):
            assert part.lora_A["default"].weight.dtype == torch.float32
            kept = torch.float32 if EXACT.search(name) else torch.float8_e4m3fn
            assert part.get_base_layer().weight.dtype == kept, name
    found = model(**inputs()).sample
    assert torch.equal(found, expected)
    assert not torch.equal(found, exact)
    assert model.base_model.model.transformer_blocks[0].attn1.to_q.base_layer.weight.dtype == torch.float8_e4m3fn


def test_an_adapter_on_a_float8_base_gets_the_gradients_of_the_rounded_base(tmp_path: Path) -> None:
    from framelora.families.easyanimate import loss

    base = make_base(tmp_path)
    params = load_params(REPOSITORY / "params.yaml")
    gradients = []
    for fp8 in (False, True):
        section = params.train.model_copy(update={"base_fp8": fp8, "gradient_checkpointing": True})
        network: Any = build_networks(loss, base, params.adapter, section, None)["unet"]
        network = network if fp8 else rounded(network)
        network.train()
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                generator = torch.Generator().manual_seed(len(name))
                parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
        network(**inputs()).sample.square().mean().backward()
        found = {name: value.grad for name, value in network.named_parameters() if value.requires_grad}
        gradients.append({name: grad for name, grad in found.items() if grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 40
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-7), name


class Linear8bitLt(nn.Linear):
    """bitsandbytes' layer as far as it is given something: it computes with what it holds."""

    def __init__(self, input_features: int, output_features: int, bias: bool, has_fp16_weights: bool) -> None:
        super().__init__(input_features, output_features, bias=bias)
        assert not has_fp16_weights  # those would be quantised anew in every step


class Int8Params(nn.Parameter):
    """bitsandbytes' weight, which is quantised on its way to the GPU."""

    def __new__(cls, data: Tensor, requires_grad: bool, has_fp16_weights: bool) -> Int8Params:
        assert not requires_grad and not has_fp16_weights
        return nn.Parameter.__new__(cls, data, requires_grad)


def test_an_int8_base_holds_every_linear_layer_so_and_trains_the_adapter_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for bitsandbytes, which needs a GPU: this sees the exchange of the layers, not the rounding."""
    from framelora.families.easyanimate import loss

    stub: Any = ModuleType("bitsandbytes.nn")
    stub.Linear8bitLt, stub.Int8Params = Linear8bitLt, Int8Params
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", stub)
    base = make_base(tmp_path)
    params = load_params(REPOSITORY / "params.yaml")
    plain = make_transformer()
    section = params.train.model_copy(update={"base_int8": True})
    network: Any = build_networks(loss, base, params.adapter, section, None)["unet"]
    held = {name: part for name, part in network.get_base_model().named_modules() if isinstance(part, LoraLinear)}
    linear = {name: part for name, part in plain.named_modules() if isinstance(part, nn.Linear)}
    assert held.keys() == linear.keys()
    for name, part in held.items():
        assert type(part.base_layer) is Linear8bitLt and type(part.base_layer.weight) is Int8Params, name
        assert torch.equal(part.base_layer.weight, linear[name].weight)
        assert (part.base_layer.bias is None) == (linear[name].bias is None)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert len(trained) == 2 * len(linear) and all(".lora_" in name for name in trained)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(**inputs()).sample, plain.eval()(**inputs()).sample)


def test_layers_that_are_fetched_one_by_one_compute_the_same() -> None:
    model = put_on(make_transformer(), make_state(1, strength=0.5))
    expected = model(**inputs()).sample
    placement = Placement("sequential_cpu_offload", CPU, torch.float32)
    for _ in range(2):
        with placement.at_work(model, denoiser=True), torch.no_grad():
            assert torch.equal(model(**inputs()).sample, expected)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_only_the_network_at_work_is_on_the_device() -> None:
    moves: list[str] = []

    class Recorder(nn.Module):
        def to(self, device: Any) -> Recorder:  # type: ignore[override]
            moves.append(str(device))
            return self

    network = Recorder()
    for mode, expected in (("none", ["cuda"]), ("model_cpu_offload", ["cuda", "cpu"])):
        moves.clear()
        with Placement(mode, torch.device("cuda"), torch.float32).at_work(network):  # type: ignore[arg-type]
            moves.append("work")
        assert moves == [expected[0], "work", *expected[1:]]


def test_a_prompts_encoders_are_gone_before_the_next_network_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path, in_channels=9)
    alive: dict[str, weakref.ref[nn.Module]] = {}
    init, load = TextEncoder.__init__, encode.load_vae

    def made(self: TextEncoder, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        alive["text encoder"] = weakref.ref(self.model)

    def loaded(folder: Path) -> nn.Module:
        assert alive["text encoder"]() is None
        vae = load(folder)
        alive["vae"] = weakref.ref(vae)
        return vae

    monkeypatch.setattr(TextEncoder, "__init__", made)
    monkeypatch.setattr(encode, "load_vae", loaded)
    family = load_params(REPOSITORY / "params.yaml").easyanimate
    assert family is not None
    ends = [np.zeros((32, 32, 3), np.uint8)]
    given = prompts.prepare(base, family, CPU, prompt="a", negative="", ends=ends, size=(5, 32, 32))
    assert given["masked"] is not None
    assert {name: network() for name, network in alive.items()} == {"text encoder": None, "vae": None}
    # The renderer's own VAE stays where it was loaded until it decodes.
    renderer = Renderer(base, family, torch.device("meta"))
    assert {parameter.device.type for parameter in renderer.vae.parameters()} == {"cpu"}


@pytest.mark.parametrize("kind", ["bert", "qwen2_vl"])
def test_a_text_encoder_that_is_fetched_layer_by_layer_embeds_the_same(kind: str, tmp_path: Path) -> None:
    base = make_base(tmp_path, encoder=kind)
    whole, fetched = (TextEncoder(base, 16, CPU, layer_by_layer=choice) for choice in (False, True))
    assert torch.equal(whole.embed("a bird sits"), fetched.embed("a bird sits"))
    assert {parameter.device.type for parameter in whole.model.parameters()} == {"cpu"}
    assert {parameter.device.type for parameter in fetched.model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("mode", "line", "same"),
    [
        ("sequential_cpu_offload", "there is no GPU: without effect", True),
        ("model_cpu_offload_and_qfloat8", "there is no GPU: float8 weights are used, but nothing is offloaded", False),
    ],
)
def test_without_a_gpu_modes_say_what_they_do(mode: str, line: str, same: bool, tmp_path: Path) -> None:
    base = make_base(tmp_path)
    family = load_params(REPOSITORY / "params.yaml").easyanimate
    assert family is not None
    clips = []
    for chosen in ("none", mode):
        render = family.render.model_copy(update={"memory_mode": chosen, "guidance_scale": 1.0})
        renderer = Renderer(base, family.model_copy(update={"render": render}), CPU)
        text = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
        clip = renderer.sample_clip(
            renderer.load_denoiser(), text, text, None, size=(5, 32, 32), num_inference_steps=2, seed=3
        )
        clips.append(torch.from_numpy(clip).float())
        assert renderer.notes == ([f"easyanimate.render.memory_mode: {mode}: {line}"] if chosen != "none" else [])
    assert torch.equal(*clips) == same
    assert (clips[0] - clips[1]).abs().mean() < 8

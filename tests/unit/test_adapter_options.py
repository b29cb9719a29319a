"""Every kind of adapter at weights between 0 and 1, saved and loaded, against the base."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from peft import PeftModel
from safetensors.torch import load_file
from tiny_training import Net, adapter_section
from torch import Tensor, nn

from framelora.adapters.folder import adapter_files, network_files
from framelora.adapters.lora import adapter_tensors, add_lora, config_dict, load_adapter, set_weight, start_from
from framelora.adapters.peft_folder import read_folder
from framelora.console import UserError
from framelora.evaluation.rendering import Rendering
from framelora.files import replace_folder
from framelora.training.networks import start_from_adapter

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "alpha": 3.0},
    "dora": {"use_dora": True},
    "pissa": {"init": "pissa"},
    "rslora_pissa": {"init": "pissa", "use_rslora": True, "alpha": 3.0},
}


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(3)
    return Net().to(dtype)


def trained(kind: str, base: nn.Module) -> PeftModel:
    """An adapter whose values were moved as by training."""
    model = add_lora(base, adapter_section(dropout=0.0, **KINDS[kind]), [], seed=5)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save(model: PeftModel, folder: Path) -> Path:
    replace_folder(folder, adapter_files(adapter_tensors(model), config_dict(model), {}))
    return folder


def weights_of(kind: str, model: PeftModel) -> dict[str, Tensor]:
    """W' of each adapted layer, computed from the definitions: s is alpha / rank, or alpha / sqrt(rank)."""
    options = {"alpha": 2.0, "use_rslora": False} | KINDS[kind]
    scale = options["alpha"] / (2**0.5 if options["use_rslora"] else 2)
    result = {}
    for name in ("to_q", "to_v"):
        layer = getattr(model.base_model.model, name)
        weight = layer.base_layer.weight + scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        if kind == "dora":
            magnitude = layer.lora_magnitude_vector["default"].weight
            weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        result[name] = weight.detach()
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.0, 0.15, 1.0, 1.5])
def test_at_weight_w_a_layer_is_w_of_the_way_from_the_base(kind: str, weight: float, tmp_path: Path) -> None:
    model = trained(kind, net())
    ends = weights_of(kind, model)
    loaded = load_adapter(net(), save(model, tmp_path / "adapter"))
    for chosen in (0.7, weight):  # a second weight replaces the first
        set_weight(loaded, chosen)
    expected, x = net(), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, whole in ends.items():
            layer = getattr(expected, name)
            layer.weight += weight * (whole - layer.weight)
        torch.testing.assert_close(loaded(x), expected(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_by_peft_alone_it_gives_the_same(kind: str, tmp_path: Path) -> None:
    """The FramerTurbo guide's lines: PeftModel.from_pretrained, merge_and_unload."""
    model = trained(kind, net())
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    merged = PeftModel.from_pretrained(net(), save(model, tmp_path / "adapter")).merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)


def test_gaussian_init_is_normal_of_standard_deviation_one_over_rank() -> None:
    """peft's own default is uniform within 1 / sqrt(width): a standard deviation of 0.036 here."""
    wide = nn.ModuleDict({"to_q": nn.Linear(256, 64)})
    state = adapter_tensors(add_lora(wide, adapter_section(rank=8, target_modules=["to_q"]), [], seed=5))
    down, up = (state[f"base_model.model.to_q.lora_{part}.weight"] for part in "AB")
    assert float(down.std()) == pytest.approx(1 / 8, rel=0.05)
    assert float((down.abs() < 1 / 8).float().mean()) == pytest.approx(0.683, abs=0.03)
    assert not up.any()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_is_trained_is_fp32_whatever_the_base(kind: str) -> None:
    model = add_lora(net(torch.bfloat16), adapter_section(**KINDS[kind]), [], seed=5)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


def test_pissa_is_saved_at_twice_the_rank_for_the_original_base(tmp_path: Path) -> None:
    model = add_lora(net(), adapter_section(init="pissa"), [], seed=5)
    folder = save(model, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors["base_model.model.to_q.lora_A.weight"].shape == (4, 4)
    x = torch.randn(5, 4)
    with torch.no_grad():  # untrained, it changes nothing
        torch.testing.assert_close(load_adapter(net(), folder)(x), net()(x), rtol=1e-4, atol=1e-5)


def test_an_earlier_adapter_gives_its_values_or_says_what_does_not_fit(tmp_path: Path) -> None:
    earlier, new = trained("lora", net()), add_lora(net(), adapter_section(), [], seed=9)
    folder = save(earlier, tmp_path / "earlier")
    start_from(new, read_folder(folder))
    assert all(torch.equal(value, adapter_tensors(earlier)[name]) for name, value in adapter_tensors(new).items())
    with pytest.raises(ValueError, match="another rank"):
        start_from(add_lora(net(), adapter_section(rank=1), [], seed=9), read_folder(folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"alpha": 7.0}, {"alpha": 2.0, "use_rslora": True}])
def test_a_start_from_an_earlier_adapter_has_its_effect(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Whatever alpha and rule of scaling both have; a PiSSA adapter is one of twice the rank."""
    earlier = trained(kind, net())
    rank = 4 if "pissa" in kind else 2
    adapter = adapter_section(rank=rank, dropout=0.0, use_dora=kind == "dora", **options)
    networks = {"unet": add_lora(net(), adapter, [], seed=9)}
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    start_from_adapter(networks, save(earlier, tmp_path / "earlier"))
    with torch.no_grad():
        torch.testing.assert_close(networks["unet"].eval()(x), earlier(x), rtol=1e-4, atol=1e-5)
        assert (earlier(x) - net()(x)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_earlier_adapter_is_named(name: str, tmp_path: Path) -> None:
    folder = save(trained("lora", net()), tmp_path / "earlier")
    (folder / name).write_bytes(b"{nothing")
    with pytest.raises(
        ValueError, match=rf"^adapter\.start_from: .*earlier/{name} is n.*copy it there again"
    ) as raised:
        start_from_adapter({"unet": add_lora(net(), adapter_section(), [], seed=9)}, folder)
    assert "\n" not in str(raised.value)


def test_the_guides_snippet_works_on_what_the_pipeline_writes(tmp_path: Path) -> None:
    """But for the import line and the paths."""
    from framelora.families.framer.networks.unet import DEFAULT_LORA_TARGETS
    from framelora.families.framer.networks.unet import FramerUNet as UNetSpatioTemporalConditionModel

    base = REPOSITORY / "bases/tiny-framer/unet"
    adapter = adapter_section(target_modules=None, dropout=0.0)
    made = add_lora(UNetSpatioTemporalConditionModel.from_pretrained(base), adapter, DEFAULT_LORA_TARGETS, seed=0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.05)
    save(made, tmp_path / "checkpoint-20/unet_lora")

    # Load base model
    unet = UNetSpatioTemporalConditionModel.from_pretrained(
        base,
        torch_dtype=torch.float32,
    )

    # Load LoRA weights
    unet = PeftModel.from_pretrained(
        unet,
        tmp_path / "checkpoint-20/unet_lora",
    )

    # Merge LoRA (optional, for inference speedup)
    unet = unet.merge_and_unload()

    plain = UNetSpatioTemporalConditionModel.from_pretrained(base)
    inputs = (torch.randn(1, 3, 17, 8, 8), torch.tensor(0.3), torch.randn(1, 2, 32), torch.tensor([[6.0, 127.0, 0.02]]))
    with torch.no_grad():
        merged, live, without = (network.eval()(*inputs).sample for network in (unet, made, plain))
    torch.testing.assert_close(merged, live, rtol=1e-3, atol=1e-4)
    assert (merged - without).abs().max() > 1e-3


def test_a_network_trained_in_full_is_blended_with_its_base(tmp_path: Path) -> None:
    whole = net()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.1)
    replace_folder(tmp_path / "unet", network_files(whole.state_dict(), {}, {}))
    loaded = load_adapter(net(), tmp_path)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in loaded.state_dict().items())
    set_weight(loaded, 0.25)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, net().state_dict()[name] + 0.25 * 0.1, rtol=1e-5, atol=1e-6)
    set_weight(loaded, 0.0)
    assert all(torch.equal(value, net().state_dict()[name]) for name, value in loaded.state_dict().items())


def test_checkpoints_of_a_dora_are_rendered_as_the_pipeline_renders_the_adapter(tmp_path: Path) -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    folders: dict[str, dict[str, float]] = {}
    expected = {}
    for step in (1, 2):
        model = trained("dora", net())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(step)
        folder = save(model, tmp_path / f"{step}")
        folders[f"with_step_{step}"] = {str(folder): 1.0}
        whole = load_adapter(net(), folder)
        set_weight(whole, 1.0)
        expected[f"with_step_{step}"] = whole(x)
    planned: Any = SimpleNamespace(renderer=SimpleNamespace(load_denoiser=net), mixtures=folders)
    mixed = Rendering.load_mixtures(planned, sorted(folders))
    with torch.no_grad():
        for name, output in expected.items():
            mixed.set_adapter(name)
            torch.testing.assert_close(mixed(x), output, rtol=1e-4, atol=1e-5)
        assert (expected["with_step_1"] - expected["with_step_2"]).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "option"), [("with_both", "render.adapters"), ("with_step_3", "render.checkpoints")])
def test_the_option_that_asked_for_a_bad_adapter_is_named(name: str, option: str, tmp_path: Path) -> None:
    folder = save(trained("dora", net()), tmp_path / "a")
    if option == "render.checkpoints":
        (folder / "adapter_config.json").write_text("{")
    planned: Any = SimpleNamespace(renderer=SimpleNamespace(load_denoiser=net), mixtures={name: {str(folder): 1.0}})
    with pytest.raises(UserError, match=rf"^{option}: .*(do not combine|is not valid JSON)"):
        Rendering.load_mixtures(planned, [name])

"""Adapters between formats, combined, merged and checked, against formulas written here."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from diffusers import EasyAnimateTransformer3DModel
from diffusers.loaders import PeftAdapterMixin
from easyanimate_base import make_base, make_transformer
from peft import PeftModel
from ruamel.yaml import YAML
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from framelora.adapters.combine import combine, compress
from framelora.adapters.files import adapter_bytes, read_adapter
from framelora.adapters.folder import WEIGHTS
from framelora.adapters.live import put_on
from framelora.adapters.merge import merge
from framelora.adapters.peft_folder import folder_files, read_folder
from framelora.adapters.single_file import Naming, header_sorted
from framelora.adapters.state import BadAdapter, LoraLayer, LoraState, check_fits
from framelora.base_model import write_lock
from framelora.cli import app
from framelora.console import UserError
from framelora.families.easyanimate import keys
from framelora.families.easyanimate.networks.transformer import dead_layers, linear_layers
from stages import render

PUBLISHED: dict[str, Any] = json.loads((REPOSITORY / "tests/data/easyanimate_lora_keys.json").read_text())
NAMING = Naming(keys.NETWORK, keys.KOHYA_PREFIX, keys.original_name)
INPUTS = {
    "hidden_states": torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0)),
    "timestep": torch.tensor([500.0]),
    "encoder_hidden_states": torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1)),
}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    layers = model.named_modules()
    return {name: (part.out_features, part.in_features) for name, part in layers if isinstance(part, nn.Linear)}


def make_state(seed: int = 0, rank: int = 3, alpha: float = 2.0, strength: float = 0.2, only: str = "") -> LoraState:
    """A random adapter on every Linear layer of the small transformer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes_of(make_transformer())
    layers = {
        name: LoraLayer(
            torch.randn(rank, columns, generator=generator) * strength,
            torch.randn(rows, rank, generator=generator) * strength,
            alpha,
        )
        for name, (rows, columns) in shapes.items()
        if only in name
    }
    return LoraState(dict(sorted(layers.items())), {"cell": "abc", "trained_steps": 3})


def write(path: Path, state: LoraState, form: Any) -> Path:
    for name, data in adapter_bytes(state, form, NAMING).items():
        file = path / name if name else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def same(one: LoraState, other: LoraState) -> None:
    assert list(one.layers) == list(other.layers)
    for name, layer in one.layers.items():
        assert torch.equal(layer.up, other.layers[name].up)
        assert torch.equal(layer.down, other.layers[name].down)
        assert layer.alpha == other.layers[name].alpha
    assert one.lineage == other.lineage


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        sample: Tensor = model(**INPUTS).sample
    return sample


class TestPublishedKeys:
    """The names and sizes that EasyAnimate's own trainer gives a LoRA of V5.1 12B."""

    def test_every_linear_layer_gets_the_published_key_at_full_size(self) -> None:
        config = {k: v for k, v in PUBLISHED["config"].items() if k not in ("enable_clip_in_inpaint",)}
        config.pop("add_ref_latent_in_control_model")
        with torch.device("meta"):
            transformer = EasyAnimateTransformer3DModel(**config)
        shapes = shapes_of(transformer)
        assert len(shapes) == 677
        expected: dict[str, list[int]] = {}
        for name, (rows, columns) in shapes.items():
            stem = NAMING.kohya_stem(name)
            expected |= {f"{stem}.lora_down.weight": [128, columns], f"{stem}.lora_up.weight": [rows, 128]}
            expected[f"{stem}.alpha"] = []
        assert expected == PUBLISHED["keys"]
        assert len(expected) == 2031
        assert sum(math.prod(shape) for shape in expected.values() if shape) == PUBLISHED["parameters"] == 914_956_288
        assert linear_layers(transformer) == list(shapes)

    @pytest.mark.parametrize("case", ["v51", "v51_norm"])
    def test_names_are_mapped_as_the_original_class_has_them(self, case: str) -> None:
        names = linear_layers(make_transformer(add_norm_text_encoder=case == "v51_norm"))
        published = PUBLISHED["modules"][case]
        depth = max(int(found[1]) for found in re.finditer(r"transformer_blocks\.(\d+)", " ".join(published.values())))
        small = {stem: name for stem, name in published.items() if not re.search(r"blocks\.([2-9])\.", name)}
        assert depth >= 1
        assert {NAMING.kohya_stem(name): name for name in names} == small


def rounded_to_8_bits(tensor: Tensor) -> Tensor:
    """Nearest numbers with a mantissa of 8 bits (bfloat16's), ties to even."""
    mantissa, exponent = torch.frexp(tensor.double())
    return torch.ldexp(torch.round(mantissa * 256) / 256, exponent).float()


class TestFormats:
    @pytest.mark.parametrize("form", ["peft", "diffusers", "kohya"])
    def test_a_round_trip_is_exact(self, form: str, tmp_path: Path) -> None:
        state = make_state()
        path = write(tmp_path / ("folder" if form == "peft" else "file.safetensors"), state, form)
        same(read_adapter(path, NAMING, lambda: shapes_of(make_transformer())), state)

    def test_ranks_and_alphas_of_single_layers_survive_every_form(self, tmp_path: Path) -> None:
        state = combine([(make_state(1, rank=2), 0.5), (make_state(2, rank=4, only="attn1"), 0.3)])
        assert {layer.rank for layer in state.layers.values()} == {2, 6}
        for form in ("peft", "diffusers", "kohya"):
            path = write(tmp_path / ("folder" if form == "peft" else f"{form}.safetensors"), state, form)
            same(read_adapter(path, NAMING, lambda: shapes_of(make_transformer())), state)

    @pytest.mark.parametrize("form", ["peft", "diffusers", "kohya"])
    def test_equal_adapters_are_equal_bytes(self, form: Any) -> None:
        assert adapter_bytes(make_state(), form, NAMING) == adapter_bytes(make_state(), form, NAMING)

    def test_an_independent_reader_of_kohya_keys_gets_the_live_adapters_output(self, tmp_path: Path) -> None:
        """W += weight * alpha / rank * up @ down, the path rebuilt by trying attributes, as the original does."""
        state, weight = make_state(), 0.15
        tensors = load_file(write(tmp_path / "a.safetensors", state, "kohya"))
        to_diffusers = {"attn2_to_q": "attn1_add_q_proj", "attn2_to_k": "attn1_add_k_proj"}
        to_diffusers |= {"attn2_to_v": "attn1_add_v_proj", "attn2_to_out_0": "attn1_to_add_out"}
        merged = make_transformer()
        stems = {name.rsplit(".lora_down", 1)[0] for name in tensors if ".lora_down" in name}
        for stem in stems:
            path = stem.removeprefix("lora_unet__")
            for theirs, ours in to_diffusers.items():
                path = path.replace(theirs, ours)
            up, down = tensors[f"{stem}.lora_up.weight"], tensors[f"{stem}.lora_down.weight"]
            alpha = tensors[f"{stem}.alpha"].item()
            module = self.resolve(merged, path.split("_"))
            module.weight.data += weight * alpha / down.shape[0] * up @ down
        assert len(stems) == len(state.layers)
        live = put_on(make_transformer(), combine([(state, weight)]))
        assert torch.allclose(output(live), output(merged), atol=1e-5)
        assert (output(live) - output(make_transformer())).abs().max() > 1e-3

    def resolve(self, module: Any, words: list[str]) -> Any:
        """Walk down a path whose dots have become underscores: the longest attribute name that exists, first."""
        if not words:
            return module
        for length in range(len(words), 0, -1):
            name = "_".join(words[:length])
            if hasattr(module, name) and (found := self.resolve(getattr(module, name), words[length:])) is not None:
                return found
        return None

    def test_peft_loads_the_folder_as_it_is(self, tmp_path: Path) -> None:
        state = make_state()
        loaded = PeftModel.from_pretrained(make_transformer(), write(tmp_path / "a", state, "peft")).eval()
        assert torch.allclose(output(loaded), output(put_on(make_transformer(), state)), atol=1e-6)

    def test_diffusers_own_loader_reads_the_single_file(self, tmp_path: Path) -> None:
        class Loading(EasyAnimateTransformer3DModel, PeftAdapterMixin):
            """diffusers' class has no LoRA loader of its own."""

        state = make_state()
        model = Loading(**{k: v for k, v in make_transformer().config.items() if not k.startswith("_")})
        model.load_state_dict(make_transformer().state_dict())
        path = write(tmp_path / "a.safetensors", state, "diffusers")
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        model.load_lora_adapter(load_file(path), prefix="transformer", metadata=metadata)
        assert torch.allclose(output(model.eval()), output(put_on(make_transformer(), state)), atol=1e-5)

    def test_sorting_the_header_keeps_every_tensor(self) -> None:
        data = adapter_bytes(make_state(), "kohya", NAMING)[""]
        assert header_sorted(data) == data
        assert len(load(data)) == 3 * len(make_state().layers)

    def test_rslora_exports_alpha_times_the_root_of_the_rank(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "a", make_state(rank=4, alpha=2.0), "peft")
        config = json.loads((folder / "adapter_config.json").read_text()) | {"use_rslora": True}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        loaded = PeftModel.from_pretrained(make_transformer(), folder).eval()
        state = read_folder(folder)
        assert next(iter(state.layers.values())).alpha == 4.0
        assert torch.allclose(output(put_on(make_transformer(), state)), output(loaded), atol=1e-5)

    def test_dora_has_no_form_with_kohyas_keys(self) -> None:
        state = make_state()
        layers = {
            name: LoraLayer(layer.down, layer.up, 1.0, torch.ones(len(layer.up)))
            for name, layer in state.layers.items()
        }
        with pytest.raises(BadAdapter, match="DoRA has no form with kohya's keys"):
            adapter_bytes(LoraState(layers), "kohya", NAMING)
        with pytest.raises(BadAdapter, match="DoRA adapters do not combine"):
            combine([(LoraState(layers), 0.5), (state, 0.5)])

    def test_layers_that_reach_no_output_are_the_last_blocks_text(self) -> None:
        model = make_transformer()
        found = dead_layers(linear_layers(model))
        live = put_on(model, make_state())
        for parameter in live.parameters():
            parameter.requires_grad_(True)
        live(**INPUTS).sample.square().sum().backward()
        dead = {
            name.removeprefix("base_model.model.").partition(".lora_B")[0]
            for name, parameter in live.named_parameters()
            if ".lora_B" in name and (parameter.grad is None or not parameter.grad.any())
        }
        assert set(found) == dead
        assert len(found) == 4


class TestWrongFiles:
    def read(self, path: Path) -> LoraState:
        return read_adapter(path, NAMING, lambda: shapes_of(make_transformer()))

    def refused(self, tmp_path: Path, tensors: dict[str, Tensor]) -> str:
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(BadAdapter) as caught:
            self.read(tmp_path / "bad.safetensors")
        return str(caught.value)

    def test_unknown_missing_and_broken_keys_are_listed(self, tmp_path: Path) -> None:
        good = load(adapter_bytes(make_state(), "kohya", NAMING)[""])
        stem = "lora_unet__proj_out"
        fault = self.refused(tmp_path, good | {"lora_unet__nothing.lora_up.weight": torch.ones(2, 2)})
        assert "keys of no layer of this base: lora_unet__nothing.lora_up.weight" in fault
        for part in ("lora_up.weight", "alpha"):
            fault = self.refused(tmp_path, {k: v for k, v in good.items() if k != f"{stem}.{part}"})
            assert f"tensors are missing: {stem} {part}" in fault
        fault = self.refused(tmp_path, good | {f"{stem}.lora_up.weight": torch.ones(16, 5)})
        assert f"differ in rank: {stem}" in fault
        fault = self.refused(tmp_path, good | {f"{stem}.lora_up.weight": torch.full((16, 3), torch.nan)})
        assert f"NaN or infinite values: {stem}" in fault

    def test_an_adapter_for_another_model_is_told_by_its_shapes(self, tmp_path: Path) -> None:
        with pytest.raises(BadAdapter, match=r"does not fit this base: proj_out is 16x32, the base's 16x64"):
            other = shapes_of(make_transformer())
            check_fits(make_state(), other | {"proj_out": (16, 64)}, "a")
        with pytest.raises(BadAdapter, match="no such layers: "):
            check_fits(make_state(), {}, "a")

    def test_what_is_no_adapter_is_said_to_be_none(self, tmp_path: Path) -> None:
        assert "is no LoRA" in self.refused(tmp_path, {"weight": torch.ones(1)})
        (tmp_path / "text.safetensors").write_text("hello")
        for path, part in (("text.safetensors", "is not a safetensors file"), ("none", "does not exist")):
            with pytest.raises(BadAdapter, match=part):
                self.read(tmp_path / path)
        (tmp_path / "empty").mkdir()
        with pytest.raises(BadAdapter, match=r"adapter_config\.json is missing"):
            self.read(tmp_path / "empty")

    def test_unknown_keys_of_a_peft_folder_are_listed(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "a", make_state(), "peft")
        tensors = load_file(folder / WEIGHTS)
        save_file(tensors | {"base_model.model.proj_out.hada_w1": torch.ones(1)}, folder / WEIGHTS)
        with pytest.raises(BadAdapter, match=r"keys that no LoRA has: base_model\.model\.proj_out\.hada_w1"):
            self.read(folder)

    @pytest.mark.parametrize(
        ("content", "part"),
        [
            ("{}", "a: its configuration has lora_alpha = None for "),
            ('{"lora_alpha": "much"}', "a: its configuration has lora_alpha = 'much' for "),
            ('{"lora_alpha": NaN}', "a: its configuration has lora_alpha = nan for "),
            ('{"lora_alpha": 1, "alpha_pattern": {"proj_out": null}}', "lora_alpha = None for proj_out"),
            ('{"lora_alpha": 1, "alpha_pattern": [1]}', "alpha_pattern = [1]: it must be a mapping"),
            ("[]", "adapter_config.json holds list, not a mapping"),
            ("", "adapter_config.json is not valid JSON: Expecting value"),
            ("\xff", "adapter_config.json is not valid JSON"),
        ],
    )
    def test_a_configuration_that_says_no_alpha_is_named(self, tmp_path: Path, content: str, part: str) -> None:
        folder = write(tmp_path / "a", make_state(), "peft")
        (folder / "adapter_config.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(BadAdapter) as caught:
            self.read(folder)
        assert str(tmp_path) in str(caught.value)
        assert part in str(caught.value)

    @pytest.mark.parametrize("key", ["lora_adapter_metadata", "framelora"])
    def test_a_damaged_value_in_the_header_is_named(self, tmp_path: Path, key: str) -> None:
        path = write(tmp_path / "a.safetensors", make_state(), "diffusers")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() | {key: "{"}
        save_file(load_file(path), path, metadata=metadata)
        with pytest.raises(BadAdapter, match=rf"a\.safetensors: {key} in its header is not valid JSON"):
            self.read(path)


class TestCombine:
    def test_it_equals_the_live_weighted_sum(self) -> None:
        one, other = make_state(1), make_state(2, rank=5, only="attn1")
        merged = make_transformer()
        for state, weight in ((one, 0.15), (other, -0.1)):
            for name, layer in state.layers.items():
                merged.get_submodule(name).weight.data += weight * layer.alpha / layer.rank * layer.up @ layer.down
        live = put_on(make_transformer(), combine([(one, 0.15), (other, -0.1)]))
        assert torch.allclose(output(live), output(merged), atol=1e-5)

    def test_recompression_is_the_best_of_its_rank_and_says_what_it_loses(self) -> None:
        state = combine([(make_state(1, only="proj_out"), 1.0), (make_state(2, only="proj_out"), 0.5)])
        small, error = compress(state, 2)
        exact = state.layers["proj_out"].delta()
        values = torch.linalg.svdvals(exact.double())
        assert error == pytest.approx((values[2:].square().sum() / values.square().sum()).sqrt().item(), rel=1e-5)
        lost = (small.layers["proj_out"].delta() - exact).norm() / exact.norm()
        assert lost.item() == pytest.approx(error, rel=1e-4)
        whole, none = compress(state, 6)
        assert none < 1e-6
        assert torch.allclose(whole.layers["proj_out"].delta(), exact, atol=1e-6)

    def test_norms_are_those_of_the_change(self) -> None:
        layer = make_state().layers["proj_out"]
        assert layer.norm() == pytest.approx(layer.delta().norm().item(), rel=1e-5)


class TestMerge:
    @pytest.mark.parametrize(
        ("dtype", "strength", "share"),
        [
            (torch.float32, 0.05, 0.0),
            (torch.bfloat16, 1.0, 0.03),
            (torch.bfloat16, 0.15, 0.19),
            (torch.bfloat16, 0.05, 0.49),
            (torch.float16, 0.05, 0.07),
            (torch.float8_e4m3fn, 1.0, 0.43),
            (torch.float8_e4m3fn, 0.05, 1.0),
        ],
    )
    def test_the_measured_error_is_that_of_rounding_small_changes(
        self, dtype: torch.dtype, strength: float, share: float
    ) -> None:
        """A 256x256 weight of sigma 0.05 in the target's dtype and a rank-8 change of about 0.003."""
        generator = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 256, bias=False))
        model[0].weight.data = (0.05 * torch.randn(256, 256, generator=generator)).to(dtype).float()
        down, up = torch.randn(8, 256, generator=generator), torch.randn(256, 8, generator=generator)
        layer = LoraLayer(down, up * 0.003 / 8**0.5, 8.0)
        error = merge(model, LoraState({"0": layer}), strength, dtype)
        assert error.share == pytest.approx(share, abs=0.05)
        assert error.worst_layer == ("0" if dtype != torch.float32 or error.worst_share else "")

    def test_a_merge_in_fp32_is_the_live_adapter(self) -> None:
        state, merged = make_state(), make_transformer()
        error = merge(merged, state, 0.15, torch.float32)
        assert error.share < 1e-4
        assert torch.allclose(output(merged), output(put_on(make_transformer(), combine([(state, 0.15)]))), atol=1e-5)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters for a small base, and two adapters."""
    text = (REPOSITORY / "params.yaml").read_text()
    text = text.replace("family: framer", "family: easyanimate").replace("bases/tiny-framer", "base")
    (tmp_path / "params.yaml").write_text(text)
    make_base(tmp_path / "base")
    for seed, name in enumerate("ab"):
        write(tmp_path / name, make_state(seed), "peft")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


class TestCommands:
    def test_export_and_import_bring_the_same_tensors_back(self, project: Path) -> None:
        assert run("export", "a", "--format", "kohya", "-o", "out/a.safetensors")[0] == 0
        assert run("import", "out/a.safetensors", "-o", "back")[0] == 0
        assert load_file("back/adapter_model.safetensors").keys() == load_file("a/adapter_model.safetensors").keys()
        idle = dead_layers(list(make_state().layers))
        expected = {
            name: LoraLayer(layer.down, torch.zeros_like(layer.up), layer.alpha) if name in idle else layer
            for name, layer in read_folder(Path("a")).layers.items()
        }
        same(read_folder(Path("back")), LoraState(expected, {"cell": "abc", "trained_steps": 3}))
        card = Path("out/a.md").read_text()
        assert card.startswith("---\nlicense: ")
        assert "transformer_blocks.1.attn1.to_add_out" in card  # holds zeros

    @pytest.mark.parametrize("form", ["peft", "diffusers", "kohya"])
    def test_layers_that_reach_no_output_are_exported_as_zeros(self, project: Path, form: str) -> None:
        idle = dead_layers(list(make_state().layers))
        assert all(make_state().layers[name].up.any() for name in idle)
        code, text = run("export", "a", "--format", form, "-o", "x" if form == "peft" else "x.safetensors")
        assert code == 0
        assert f"4 of them reach no output of the model and hold zeros: {', '.join(idle)}" in text
        tensors = load_file("x/adapter_model.safetensors" if form == "peft" else "x.safetensors")
        names = {
            "kohya": lambda name: f"{NAMING.kohya_stem(name)}.lora_up.weight",
            "diffusers": lambda name: f"transformer.{name}.lora_B.weight",
            "peft": lambda name: f"base_model.model.{name}.lora_B.weight",
        }
        zero = {name for name in make_state().layers if not tensors[names[form](name)].any()}
        assert zero == set(idle)
        state = read_adapter(
            Path("x" if form == "peft" else "x.safetensors"), NAMING, lambda: shapes_of(make_transformer())
        )
        assert torch.equal(output(put_on(make_transformer(), state)), output(put_on(make_transformer(), make_state())))

    def test_of_layers_that_an_adapter_has_not_nothing_is_said(self, project: Path) -> None:
        write(Path("few"), make_state(only="proj_out"), "peft")
        code, text = run("export", "few", "-o", "few.safetensors")
        assert code == 0
        assert "zeros" not in text + Path("few.md").read_text()

    def test_import_without_a_name_writes_beside_the_file(self, project: Path) -> None:
        assert run("export", "a", "-o", "out/ufo.safetensors")[0] == 0
        code, text = run("import", "out/ufo.safetensors")
        assert code == 0
        assert "wrote out/ufo: " in text
        assert read_folder(Path("out/ufo")).layers.keys() == make_state().layers.keys()
        shutil.copy("out/ufo.safetensors", "out/plain")
        for adapter, part in (("a", "a is a folder already"), ("out/plain", "does not end in .safetensors")):
            code, text = run("import", adapter)
            assert (code, text.count("\n")) == (1, 1), text
            assert part in text

    def test_a_card_with_a_contact_sheet_lies_beside_the_runs_own_adapter(self, project: Path) -> None:
        shutil.copytree("a", "models/adapter")
        Path("reports/render/sheets").mkdir(parents=True)
        Path("reports/render/sheets/pair.png").write_bytes(b"a picture")
        subprocess.run(["git", "init", "-q"], check=True)
        author = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
        subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        for form, output, name in (("peft", "out/p", "out/p/README.md"), ("kohya", "out/k.safetensors", "out/k.md")):
            assert run("export", "models/adapter", "--format", form, "-o", output, "--licence", "apache-2.0")[0] == 0
            card = Path(name).read_text()
            header = YAML(typ="safe").load(card.split("---")[1])
            library = "peft" if form == "peft" else "diffusers"
            assert header == {"license": "apache-2.0", "library_name": library, "tags": ["lora", "text-to-video"]}
            assert "![Contact sheet](contact_sheet.png)" in card
            assert "## How to load" in card
            assert Path(name).with_name("contact_sheet.png").read_bytes() == b"a picture"
            assert head in card
            state = read_adapter(Path(output), NAMING, lambda: shapes_of(make_transformer()))
            assert state.lineage["commit"]["id"] == head
        assert run("export", "a", "--format", "peft", "-o", "out/other")[0] == 0  # not what was rendered
        assert "Contact sheet" not in Path("out/other/README.md").read_text()

    def test_combine_prints_what_recompression_loses(self, project: Path) -> None:
        code, text = run("combine", "a@0.15", "b@0.1", "-o", "ab", "--rank", "2")
        assert code == 0
        assert re.search(r"rank 6, recompressed to 2: \d+\.\d\d % of the change is lost", text)
        expected, _ = compress(combine([(make_state(0), 0.15), (make_state(1), 0.1)]), 2)
        found = read_folder(Path("ab")).layers["proj_out"].delta()
        assert torch.allclose(found, expected.layers["proj_out"].delta(), atol=1e-6)

    def test_merge_refuses_a_dtype_that_loses_the_change(self, project: Path) -> None:
        code, text = run("merge", "a@0.01", "-o", "merged", "--dtype", "float8_e4m3fn")
        assert code == 1
        assert "float8_e4m3fn loses" in text
        assert not Path("merged").exists()
        assert run("merge", "a@0.15", "-o", "merged")[0] == 0
        merged = EasyAnimateTransformer3DModel.from_pretrained("merged").eval()
        live = put_on(
            EasyAnimateTransformer3DModel.from_pretrained("base/transformer"), combine([(make_state(), 0.15)])
        )
        assert torch.allclose(output(merged), output(live), atol=1e-5)

    def test_merge_says_what_a_dtype_loses_and_writes_what_is_accepted(self, project: Path) -> None:
        """The shares are computed here, with another formula for the rounding: 8 bits of mantissa in bf16."""
        weight, lost, whole, shares = 0.05, 0.0, 0.0, {}
        base = make_transformer().state_dict()
        for name, layer in make_state().layers.items():
            change = weight * layer.alpha / layer.rank * layer.up @ layer.down
            error = rounded_to_8_bits(base[f"{name}.weight"] + change) - rounded_to_8_bits(base[f"{name}.weight"])
            error -= change
            shares[name] = float(error.norm() / change.norm())
            lost, whole = lost + float(error.norm()) ** 2, whole + float(change.norm()) ** 2
        share, worst = 100 * math.sqrt(lost / whole), max(shares, key=lambda name: shares[name])
        line = f"bfloat16 loses {share:.1f} % of the change at weight {weight:g} (most in {worst}: "
        line += f"{100 * shares[worst]:.1f} %)"
        arguments = ["merge", f"a@{weight}", "--dtype", "bfloat16", "-o", "merged"]
        below, above = f"{share / 100 - 0.005:.4f}", f"{share / 100 + 0.005:.4f}"
        code, text = run(*arguments, "--max-error", below)
        assert code == 1
        assert f"error: {line}: merge to float32, use the adapter live, or give --accept-loss" in text
        assert not Path("merged").exists()
        code, text = run(*arguments, "--max-error", below, "--accept-loss")
        assert code == 0
        assert f"warning: {line}\n" in text
        assert Path("merged/config.json").is_file()
        shutil.rmtree("merged")
        code, text = run(*arguments, "--max-error", above)
        assert code == 0
        assert "warning" not in text
        assert text.endswith(f"wrote merged: {line}\n")
        merged = load_file("merged/diffusion_pytorch_model.safetensors")
        layer = make_state().layers["proj_out"]
        expected = rounded_to_8_bits(
            base["proj_out.weight"] + weight * layer.alpha / layer.rank * layer.up @ layer.down
        )
        assert torch.equal(merged["proj_out.weight"].float(), expected)

    def test_show_prints_lineage_norms_and_idle_layers(self, project: Path) -> None:
        code, text = run("show", "a", "--layers", "3")
        assert code == 0
        assert "trained_steps: 3" in text
        norms = {
            name: (layer.alpha / layer.rank * layer.up.double() @ layer.down.double()).norm().item()
            for name, layer in make_state().layers.items()
        }
        assert f"{len(norms)} layers, norm of the change" in text
        rows = re.findall(r"│ (\S+) +│ +(\S+) │ +(\S+) │ +(\S+) │", text)
        largest = sorted(norms, key=lambda name: -norms[name])[:3]
        assert rows == [(name, "3", "2", f"{norms[name]:.4g}") for name in largest]
        assert "no effect on any output: transformer_blocks.1" in text

    @pytest.mark.parametrize(
        ("key", "value", "line"),
        [
            (
                "lora_weights: [1.0]",
                "lora_weights: [1.0, -0.5]",
                "warning: render.lora_weights: a negative weight takes away what the adapter learned",
            ),
            (
                "adapters: {}",
                "adapters: {both: {models/adapter: -0.1}}",
                "warning: render.adapters: a negative weight takes away what an adapter learned",
            ),
        ],
    )
    def test_the_render_stage_warns_of_negative_weights(
        self, project: Path, capsys: pytest.CaptureFixture[str], key: str, value: str, line: str
    ) -> None:
        for text, warned in ((key, ""), (value, f"{line}\n")):
            written = (project / "params.yaml").read_text()
            assert key in written
            (project / "params.yaml").write_text(written.replace(key, text))
            with pytest.raises(UserError, match="models/adapter holds no adapter"):
                render.main("", False)
            assert capsys.readouterr().err == warned

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (["combine", "a@much", "-o", "x"], "'much' is not a number"),
            (["combine", "a@nan", "-o", "x"], "the weight must be finite"),
            (["combine", "a@inf", "-o", "x"], "the weight must be finite"),
            (["combine", "none@0.1", "-o", "x"], "none does not exist"),
            (["combine", "a@0.1", "-o", "base"], "exists and is no adapter"),
            (["export", "a", "--format", "onnx", "-o", "x"], "--format onnx: choose one of peft"),
            (["export", "a", "-o", "x"], "call it something.safetensors"),
            (["show", "a", "--base", "nowhere"], "nowhere does not exist"),
            (["merge", "a@0.1", "-o", "base"], "exists: name a new folder"),
        ],
    )
    def test_mistakes_are_one_line(self, project: Path, arguments: list[str], part: str) -> None:
        code, text = run(*arguments)
        assert code == 1
        assert part in text
        assert "Traceback" not in text

    @pytest.mark.parametrize("command", [["show", "a"], ["export", "a", "-o", "x.safetensors"]])
    def test_a_base_of_another_family_is_named(self, project: Path, command: list[str]) -> None:
        foreign = str(REPOSITORY / "bases/tiny-framer")
        code, text = run(*command, "--base", foreign)
        assert (code, text.count("\n")) == (1, 1), text
        assert f"{foreign} is no base of model.family easyanimate: transformer/config.json is missing" in text

    def test_a_base_without_the_denoisers_weights_is_named(self, project: Path) -> None:
        (project / "base/transformer/diffusion_pytorch_model.safetensors").unlink()
        write_lock(project / "base")
        code, text = run("merge", "a@0.1", "-o", "merged")
        assert (code, text.count("\n")) == (1, 1), text
        assert "transformer/diffusion_pytorch_model.safetensors is missing" in text

    def test_an_adapter_for_another_model_is_refused(self, project: Path) -> None:
        make_base(project / "wide", num_attention_heads=4)
        code, text = run("show", "a", "--base", "wide")
        assert code == 1
        assert "does not fit this base" in text
        assert folder_files(make_state())

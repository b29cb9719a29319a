"""params.yaml: every mistake is named by its key, in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from pydantic import ValidationError
from ruamel.yaml import YAML

from framelora.console import UserError
from framelora.params import RESERVED, Params, load_params

SHIPPED: dict[str, Any] = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")


def sections(value: dict[str, Any] = SHIPPED, path: str = "") -> list[str]:
    """Dotted names of all sections; the document itself is ''."""
    inner = [
        (f"{path}.{name}".lstrip("."), below) for name, below in value.items() if isinstance(below, dict) and below
    ]
    return [path, *(found for name, below in inner for found in sections(below, name))]


def write(path: Path, changes: dict[str, Any], remove: str = "") -> Path:
    """The shipped file with some leaves changed (as YAML text) and one removed."""
    document = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")
    for key, text in changes.items():
        *parents, leaf = key.split(".")
        section = document
        for name in parents:
            section = section[name]
        section[leaf] = YAML(typ="safe", pure=True).load(text) if isinstance(text, str) else text
    if remove:
        *parents, leaf = remove.split(".")
        section = document
        for name in parents:
            section = section[name]
        del section[leaf]
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_params(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def test_the_shipped_file_loads_with_its_values() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    assert params.model_dump() == SHIPPED
    assert params.family is params.framer
    assert params.train.mixed_precision == "no"  # a word, not False


def test_it_can_not_be_changed() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    with pytest.raises(ValidationError):
        params.train.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        params.train = params.train  # type: ignore[misc]


@pytest.mark.parametrize("section", sections())
def test_an_unknown_key_is_named_in_every_section(path: Path, section: str) -> None:
    key = f"{section}.learning_rat".lstrip(".")
    assert f": {key} is unknown: check its spelling, or remove it" in refused(write(path, {key: "1"}))


@pytest.mark.parametrize(
    "key", [name for name in sections() if name not in ("", "easyanimate")] + ["train.seed", "data.root", "pair.stride"]
)
def test_a_missing_key_is_named(path: Path, key: str) -> None:
    assert f": {key} is missing: add it" in refused(write(path, {}, remove=key))


@pytest.mark.parametrize(
    ("key", "text", "part"),
    [
        ("train.seed", "forty", "train.seed = 'forty': input should be a valid integer"),
        ("train.seed", "'42'", "train.seed = '42': input should be a valid integer"),
        ("train.seed", "1.5", "train.seed = 1.5: input should be a valid integer"),
        ("train.seed", "true", "train.seed = True: input should be a valid integer"),
        ("train.learning_rate", "true", "train.learning_rate = True: input should be a valid number"),
        ("train.learning_rate", "'1e-3'", "train.learning_rate = '1e-3': input should be a valid number"),
        ("train.gradient_checkpointing", "1", "train.gradient_checkpointing = 1: input should be a valid boolean"),
        ("train.gradient_checkpointing", "no", "train.gradient_checkpointing = 'no': input should be a valid boolean"),
        ("data.root", "5", "data.root = 5: input should be a valid string"),
        ("data.root", "null", "data.root = None: input should be a valid string"),
        ("train.mixed_precision", "half", "train.mixed_precision = 'half': input should be 'no', 'fp16' or 'bf16'"),
        ("train.mixed_precision", "false", "train.mixed_precision = False: input should be 'no'"),
        ("extract.fps", "0", "extract.fps = 0: input should be greater than 0"),
        ("extract.fps", ".nan", "extract.fps = nan: input should be a finite number"),
        ("extract.max_shot_seconds", ".inf", "extract.max_shot_seconds = inf: input should be a finite number"),
        ("render.lora_weights", "[.inf]", "render.lora_weights.0 = inf: input should be a finite number"),
        ("render.lora_weights", "[]", "render.lora_weights = []: list should have at least 1 item"),
        ("pair.num_frames", "2", "pair.num_frames = 2: input should be greater than or equal to 3"),
        ("pair.stride", "0", "pair.stride = 0: input should be greater than or equal to 1"),
        ("extract.buckets", "[]", "extract: give buckets, or an empty list and a bucket_budget"),
        ("extract.buckets", "96x64", "extract.buckets = '96x64': input should be a valid list"),
        ("extract.buckets", "[96x64, 96x60]", "extract.buckets.1 = '96x60': write a bucket as WIDTHxHEIGHT"),
        ("extract.buckets", "['0x64']", "extract.buckets.0 = '0x64': write a bucket"),
        ("extract.buckets", "[64x0]", "extract.buckets.0 = '64x0': write a bucket"),
        ("extract.buckets", "[-8x64]", "extract.buckets.0 = '-8x64': write a bucket"),
        ("extract.buckets", "[64]", "extract.buckets.0 = 64: input should be a valid string"),
        ("extract.buckets", "[64x64x64]", "extract.buckets.0 = '64x64x64': write a bucket"),
        ("extract.buckets", "[²x64]", "extract.buckets.0 = '²x64': write a bucket"),
        ("pair.test_fraction", "0.85", "pair: val_fraction + test_fraction must be below 1"),
        ("pair.test_fraction", "1.5", "pair.test_fraction = 1.5: input should be less than or equal to 1"),
        ("train", "5", "train = 5: input should be a valid dictionary"),
        ("framer.objective.conditioning_dropout_prob", "0.4", "conditioning_dropout_prob = 0.4: input should be less"),
        ("model.family", "sora", "model.family = 'sora': input should be 'framer' or 'easyanimate'"),
        ("adapter.target_modules", "[1]", "adapter.target_modules.0 = 1: input should be a valid string"),
    ],
)
def test_a_wrong_type_or_value_is_named_with_what_was_read(path: Path, key: str, text: str, part: str) -> None:
    assert f": {part}" in refused(write(path, {key: text})).replace("framer.objective.", "")


def test_the_first_of_several_mistakes_counts_the_others(path: Path) -> None:
    message = refused(write(path, {"train.seed": "x", "train.unknown": "1", "pair.stride": "0"}))
    assert message.endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1.0e-4", 1e-4), ("0", 0.0), ("1E-4", 1e-4), ("+1e+0", 1.0), (".5", 0.5)]
)
def test_numbers_are_read_as_dvc_reads_them(path: Path, text: str, value: float) -> None:
    shipped = (REPOSITORY / "params.yaml").read_text()
    path.write_text(re.sub(r"learning_rate: \S+", f"learning_rate: {text}", shipped))
    assert load_params(path).train.learning_rate == value
    assert isinstance(load_params(path).train.learning_rate, float)


def test_no_is_a_word(path: Path) -> None:
    path.write_text(re.sub(r"title: .*", "title: no", (REPOSITORY / "params.yaml").read_text()))
    assert load_params(path).report.title == "no"


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("section", [*sections(), "new"])
def test_a_reserved_name_is_refused_anywhere_with_the_reason(path: Path, section: str, name: str) -> None:
    key = f"{section}.{name}".lstrip(".")
    change = {"new": {name: 1}} if section == "new" else {key: "1"}
    message = refused(write(path, change))
    assert f": {key} has a reserved name: DVC ignores parameters called `size` or `nfiles`" in message
    assert "stale" in message


def test_no_parameter_has_a_reserved_name() -> None:
    def names(model: type[Any]) -> set[str]:
        inner = [field.annotation for field in model.model_fields.values() if hasattr(field.annotation, "model_fields")]
        return set(model.model_fields).union(*map(names, inner))

    assert "rank" in names(Params)
    assert not names(Params) & set(RESERVED)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"train: [1", "is not valid YAML at line"),
        (b"train:\n\tseed: 1", "is not valid YAML at line 2"),
        (b"train: {}\ntrain: {}", "is not valid YAML at line 2"),
        (b"\xff\xfe\xff", "is not valid YAML"),
        (b"a: \x00", "is not valid YAML"),
        (b"- 1", "must hold sections such as `train:`, not "),
        (b"", "must hold sections such as `train:`, not NoneType"),
        (b"just words", "must hold sections such as `train:`, not str"),
        (b"1: 2", "is missing: add it"),
        (b"!!python/object/apply:os.system [ls]", "not"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused(path: Path, content: bytes, part: str) -> None:
    path.write_bytes(content)
    assert part in refused(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(Path("params.yaml")) == "params.yaml is missing: run from the repository's root"


@pytest.mark.parametrize(
    ("key", "text", "part"),
    [
        ("render.lora_weights", "[0, strong]", "render.lora_weights.1 = 'strong'"),
        ("render.lora_weights", "[0, .nan]", "render.lora_weights.1 = nan: input should be a finite number"),
        ("render.lora_weights", "[-.inf]", "render.lora_weights.0 = -inf: input should be a finite number"),
        ("render.adapters", "{both: {models/adapter: .nan}}", "models/adapter = nan: input should be a finite number"),
        ("render.adapters", "{both: {adapters/a: 1.0}}", "adapters/a is neither models/adapter nor a folder inside "),
        ("render.adapters", "{both: {models/start/../a: 1.0}}", "is neither models/adapter nor a folder inside "),
        ("render.adapters", "{both: {}}", "both names no adapter: write FOLDER: WEIGHT"),
        ("render.adapters", "{step_3: {models/adapter: 1.0}}", "no `step_` in front"),
        ("train.image_share", "1.0", "train.image_share = 1.0"),
        ("easyanimate.render.memory_mode", "low_vram", "easyanimate.render.memory_mode = 'low_vram'"),
    ],
)
def test_weights_adapters_and_modes_that_can_not_be_are_named(path: Path, key: str, text: str, part: str) -> None:
    assert part in refused(write(path, {key: text}))


def test_a_float8_base_needs_what_makes_it_small(path: Path) -> None:
    assert "base_fp8 saves nothing without gradient_checkpointing" in refused(write(path, {"train.base_fp8": True}))
    both = {"train.base_fp8": True, "train.base_int8": True, "train.gradient_checkpointing": True}
    assert "base_int8 and base_fp8 are two ways to hold the base" in refused(write(path, both))


@pytest.mark.parametrize(
    ("kind", "named"),
    [({"adapter.use_dora": True}, "adapter.use_dora"), ({"train.unet": "full"}, "train.unet: full"), ({}, "")],
)
@pytest.mark.parametrize(
    ("key", "value", "refuses"),
    [
        ("dtype", "float32", False),
        ("dtype", "bfloat16", True),
        ("memory_mode", "model_cpu_offload", False),
        ("memory_mode", "model_cpu_offload_and_qfloat8", True),
        ("memory_mode", "sequential_cpu_offload", True),
    ],
)
def test_weights_that_are_rewritten_for_each_strength_are_rendered_in_fp32(
    path: Path, kind: dict[str, Any], named: str, key: str, value: str, refuses: bool
) -> None:
    base = {"model.family": "easyanimate", "model.base": "bases/tiny-easyanimate"}
    written = write(path, base | kind | {f"easyanimate.render.{key}": value})
    if named and refuses:
        assert f"easyanimate.render.{key}: {value} does not go with {named}, " in refused(written)
    else:
        load_params(written)

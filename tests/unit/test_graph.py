"""dvc.yaml against the code: every stage lists exactly the files it runs, and imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from ruamel.yaml import YAML

from framelora.params import Params, load_params
from framelora.source import import_closure, imports, module_file

GRAPH: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")
STAGES = sorted(GRAPH["stages"])
LAYERS = ["stages", "framelora"]


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


FAMILIES = ["framer", "easyanimate"]


def resolved(names: list[str], params: Params, family: str = "") -> set[str]:
    return {name.replace("${model.family}", family or params.model.family) for name in names}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_code_it_imports(stage: str, family: str, params: Params) -> None:
    deps = resolved(GRAPH["stages"][stage]["deps"], params, family)
    code = {name for name in deps if name.endswith(".py")}
    networks = f"framelora/families/{family}/networks"
    closure = import_closure(REPOSITORY / f"stages/{stage}.py", family)
    names = {path.relative_to(REPOSITORY).as_posix() for path in closure}
    assert code == {name for name in names if not name.startswith(networks)}
    assert (networks in deps) == any(name.startswith(networks) for name in names)


def test_no_stage_depends_on_another_family() -> None:
    """Family files are templated, so that an edit of one family leaves the others' stages alone."""
    for stage in STAGES:
        for name in GRAPH["stages"][stage]["deps"]:
            assert not name.startswith(tuple(f"framelora/families/{family}/" for family in FAMILIES)), (stage, name)


def test_outs_have_one_writer_and_deps_exist_or_are_outs(params: Params) -> None:
    outs: list[str] = []
    for stage in GRAPH["stages"].values():
        outs += stage["outs"] + [name for metric in stage.get("metrics", []) for name in metric]
    assert len(outs) == len(set(outs))
    for stage in GRAPH["stages"].values():
        for name in resolved(stage["deps"], params):
            if "${" not in name:
                assert name in outs or (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_the_graph_exist(family: str, params: Params) -> None:
    document = params.model_dump()
    for stage in GRAPH["stages"].values():
        for name in resolved(stage["params"], params, family):
            value: Any = document
            for part in name.split("."):
                assert part in value, name
                value = value[part]


def test_every_parameter_is_read_by_a_stage(params: Params) -> None:
    """No option is parsed and ignored: each leaf is named somewhere outside the schema."""
    code = "\n".join(
        path.read_text()
        for path in [*REPOSITORY.glob("framelora/**/*.py"), *REPOSITORY.glob("stages/*.py")]
        if path.name != "params.py" and path.parent.name != "schema"
    )
    for section, values in params.model_dump().items():
        leaves = [leaf for part in values.values() for leaf in part] if section in FAMILIES else list(values)
        for leaf in leaves:
            assert f".{leaf}" in code or f'"{leaf}"' in code, f"{section}.{leaf}"


def third_party_free(path: Path) -> set[str]:
    return {file.relative_to(REPOSITORY).as_posix() for file in imports(path, "framer")}


def test_imports_point_one_way() -> None:
    """stages -> framelora; the library never imports a stage, and a stage never imports another."""
    for path in REPOSITORY.glob("framelora/**/*.py"):
        assert not any(name.startswith("stages/") for name in third_party_free(path)), path
    for path in REPOSITORY.glob("stages/*.py"):
        assert not any(name.startswith("stages/") for name in third_party_free(path)), path


def test_only_the_parameters_name_a_family_outside_the_families() -> None:
    for path in [*REPOSITORY.glob("framelora/**/*.py"), *REPOSITORY.glob("stages/*.py")]:
        name = path.relative_to(REPOSITORY).as_posix()
        if name.startswith(("framelora/families/", "framelora/schema/")) or name == "framelora/params.py":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not any(f"families.{family}" in node.module for family in FAMILIES), name


def test_code_that_computes_cells_does_not_import_the_parameters_or_the_store() -> None:
    """Else an edit of a parameter's docstring or of the store would compute every cell anew."""
    computing = [
        "media/decode",
        "media/lossless",
        "media/measure",
        "media/probe",
        "evaluation/baselines",
        "adapters/lora",
    ]
    computing += ["media/flow", "media/rife", "evaluation/measures"]
    parts = ("encode", "loss", "render", "units", "codec")
    computing += [f"families/{family}/{part}" for family in FAMILIES for part in parts]
    computing += ["families/framer/networks/unet", "families/easyanimate/networks/transformer"]
    computing += ["training/loop", "training/live"]
    for name in computing:
        closure = import_closure(REPOSITORY / f"framelora/{name}.py")
        assert not {path.name for path in closure} & {"params.py", "store.py", "fill.py", "console.py"}, name
        assert not any(path.parent.name == "schema" for path in closure), name


def test_package_files_stay_empty() -> None:
    """A fat `__init__` would pull every family into every stage."""
    for path in [*REPOSITORY.glob("framelora/**/__init__.py"), REPOSITORY / "stages/__init__.py"]:
        tree = ast.parse(path.read_text())
        inner = [node for node in tree.body if not isinstance(node, ast.Expr | ast.Import)]
        assert path.parent.name == "framelora" or not tree.body, path
        assert not inner, path


# Edit this file, and these stages run again.
RERUNS = {
    "framelora/media/probe.py": ["captions", "extract"],
    "framelora/media/decode.py": ["extract"],
    "framelora/media/shots.py": ["extract"],
    "framelora/dataset/rules.py": ["captions"],
    "framelora/media/lossless.py": ["encode", "extract", "pair", "render", "report", "score", "train"],
    "framelora/media/measure.py": ["pair"],
    "framelora/dataset/captions.py": ["captions"],
    "framelora/dataset/sampler.py": ["train"],
    "framelora/families/framer/encode.py": ["encode", "train"],
    "framelora/families/framer/loss.py": ["train"],
    "framelora/families/framer/render.py": ["render"],
    "framelora/families/framer/codec.py": ["encode", "render", "train"],
    "framelora/families/framer/networks": ["render", "train"],
    "framelora/training/loop.py": ["train"],
    "framelora/training/live.py": ["train"],
    "framelora/adapters/lora.py": ["render", "train"],
    "framelora/evaluation/metrics.py": ["score"],
    "framelora/evaluation/perceptual.py": ["score"],
    "framelora/evaluation/vbench.py": ["score"],
    "framelora/evaluation/totals.py": ["score"],
    "framelora/evaluation/baselines.py": ["render"],
    "framelora/evaluation/rendering.py": ["render"],
    "framelora/media/rife.py": ["pair", "render"],
    "framelora/media/flow.py": ["pair", "render", "score"],
    "framelora/report/page.py": ["report"],
    "framelora/params.py": STAGES,
    "framelora/cli.py": [],
    "framelora/cells/upkeep.py": [],
}

# Edit this file, and the cells that these modules compute are computed anew (each kind's key names one or more).
RECOMPUTES = {
    "framelora/media/buckets.py": ["media.decode", "families.easyanimate.encode"],
    "framelora/media/shots.py": ["media.decode"],
    "framelora/media/frames.py": ["media.decode"],
    "framelora/media/lossless.py": ["media.lossless", "media.thumbnail"],
    "framelora/media/mux.py": ["media.lossless", "media.thumbnail"],
    "framelora/media/measure.py": ["media.measure"],
    "framelora/families/framer/codec.py": [f"families.framer.{part}" for part in ("encode", "render")],
    "framelora/families/framer/spec.py": [f"families.framer.{part}" for part in ("loss", "render")],
    "framelora/families/framer/networks/unet.py": [f"families.framer.{part}" for part in ("loss", "render")],
    "framelora/families/framer/encode.py": ["families.framer.encode"],
    "framelora/families/easyanimate/units.py": [
        f"families.easyanimate.{part}" for part in ("encode", "loss", "render")
    ],
    "framelora/families/easyanimate/encode.py": ["families.easyanimate.encode"],
    "framelora/training/checkpoint.py": ["training.loop"],
    "framelora/training/live.py": ["training.live"],
    "framelora/adapters/lora.py": ["training.loop", "adapters.lora"],
    "framelora/evaluation/baselines.py": ["evaluation.baselines"],
    "framelora/media/rife.py": ["media.rife"],
    "framelora/media/flow.py": ["evaluation.baselines", "media.flow", "evaluation.measures"],
    "framelora/evaluation/metrics.py": ["evaluation.measures", "evaluation.vbench"],
    "framelora/console.py": [],
    "framelora/evaluation/intervals.py": [],
    "framelora/evaluation/catalogue.py": [],
    "framelora/cells/store.py": [],
    "framelora/files.py": [],
}
COMPUTING = [
    "media.probe",
    "media.decode",
    "media.lossless",
    "media.measure",
    "training.loop",
    "training.live",
    "adapters.lora",
    "evaluation.baselines",
]
COMPUTING += ["media.flow", "media.rife", "evaluation.measures", "evaluation.vbench", "media.thumbnail"]
COMPUTING += [f"families.{family}.{part}" for family in FAMILIES for part in ("encode", "loss", "render")]


@pytest.mark.parametrize("path", RERUNS)
def test_edit_this_file_and_these_stages_rerun(path: str, params: Params) -> None:
    stages = [name for name in STAGES if path in resolved(GRAPH["stages"][name]["deps"], params)]
    assert stages == RERUNS[path]


@pytest.mark.parametrize("path", RECOMPUTES)
def test_edit_this_file_and_these_cells_are_computed_anew(path: str) -> None:
    closures = {name: import_closure(module_file(f"framelora.{name}") or Path()) for name in COMPUTING}
    assert [name for name in COMPUTING if REPOSITORY / path in closures[name]] == RECOMPUTES[path]


def test_every_computing_module_is_in_a_key() -> None:
    """What plans cells names exactly these modules in their keys (families by their part)."""
    planning = [REPOSITORY / "framelora" / name for name in ("dataset/gate.py", "evaluation/rendering.py")]
    code = "\n".join(path.read_text() for path in [*REPOSITORY.glob("stages/*.py"), *planning])
    for name in COMPUTING:
        part = name.rpartition(".")[2]
        assert f'"framelora.{name}"' in code or f"{{params.model.family}}.{part}" in code, name

"""dvc.yaml against the code: every stage lists exactly the files it runs, and imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from ruamel.yaml import YAML

from framelora.params import Params, load_params
from framelora.source import import_closure, imports

GRAPH: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")
STAGES = sorted(GRAPH["stages"])
LAYERS = ["stages", "framelora"]


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


def resolved(names: list[str], params: Params) -> set[str]:
    return {name.replace("${model.family}", params.model.family) for name in names}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_code_it_imports(stage: str, params: Params) -> None:
    deps = resolved(GRAPH["stages"][stage]["deps"], params)
    code = {name for name in deps if name.endswith(".py")}
    closure = import_closure(REPOSITORY / f"stages/{stage}.py", params.model.family)
    assert code == {path.relative_to(REPOSITORY).as_posix() for path in closure}


def test_no_stage_depends_on_another_family() -> None:
    """Family files are templated, so that an edit of one family leaves the others' stages alone."""
    for stage in STAGES:
        for name in GRAPH["stages"][stage]["deps"]:
            assert not name.startswith("framelora/families/framer/"), (stage, name)


def test_outs_have_one_writer_and_deps_exist_or_are_outs(params: Params) -> None:
    outs: list[str] = []
    for stage in GRAPH["stages"].values():
        outs += stage["outs"] + [name for metric in stage.get("metrics", []) for name in metric]
    assert len(outs) == len(set(outs))
    for stage in GRAPH["stages"].values():
        for name in resolved(stage["deps"], params):
            if "${" not in name:
                assert name in outs or (REPOSITORY / name).exists(), name


def test_parameters_of_the_graph_exist(params: Params) -> None:
    document = params.model_dump()
    for stage in GRAPH["stages"].values():
        for name in resolved(stage["params"], params):
            value: Any = document
            for part in name.split("."):
                assert part in value, name
                value = value[part]


def test_every_parameter_is_read_by_a_stage(params: Params) -> None:
    """No option is parsed and ignored: each leaf is named somewhere outside the schema."""
    code = "\n".join(
        path.read_text()
        for path in [*REPOSITORY.glob("framelora/**/*.py"), *REPOSITORY.glob("stages/*.py")]
        if path.name != "params.py"
    )
    for section, values in params.model_dump().items():
        leaves = [leaf for part in values.values() for leaf in part] if section == "framer" else list(values)
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
        if name.startswith("framelora/families/") or name == "framelora/params.py":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert "families.framer" not in node.module, name


def test_code_that_computes_cells_does_not_import_the_parameters_or_the_store() -> None:
    """Else an edit of a parameter's docstring or of the store would compute every cell anew."""
    computing = ["media/decode", "media/lossless", "media/probe", "evaluation/baselines", "adapters/lora"]
    computing += [f"families/framer/{part}" for part in ("encode", "loss", "render", "units", "model")]
    computing += ["training/loop"]
    for name in computing:
        closure = {path.name for path in import_closure(REPOSITORY / f"framelora/{name}.py")}
        assert not closure & {"params.py", "store.py", "fill.py", "console.py"}, name


def test_package_files_stay_empty() -> None:
    """A fat `__init__` would pull every family into every stage."""
    for path in [*REPOSITORY.glob("framelora/**/__init__.py"), REPOSITORY / "stages/__init__.py"]:
        tree = ast.parse(path.read_text())
        inner = [node for node in tree.body if not isinstance(node, ast.Expr | ast.Import)]
        assert path.parent.name == "framelora" or not tree.body, path
        assert not inner, path

"""`framelora preset`: put the values of a preset into params.yaml, which keeps its comments and its other values."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from framelora.console import UserError, one_line, relative, say
from framelora.files import write_bytes
from framelora.params import load_params

PARAMS = Path("params.yaml")
FREE = ("captions.severities", "render.adapters")  # whose keys a person chooses: a preset's replace them all


def apply(preset: Annotated[Path, typer.Argument(help="A file of presets/.")]) -> None:
    """Write the values of a preset into params.yaml."""
    text = merged(PARAMS, preset)
    trial = PARAMS.with_name(".params-preset.yaml")
    try:
        write_bytes(trial, text)
        load_params(trial)  # nothing is written that the pipeline would refuse
    except UserError as error:
        raise UserError(f"{relative(preset)} does not fit: {error}") from None
    finally:
        trial.unlink(missing_ok=True)
    write_bytes(PARAMS, text)
    say(f"wrote the values of {relative(preset)} into {relative(PARAMS)}")


def merged(params: Path, preset: Path) -> bytes:
    """A parameter file with the values of a preset in place of its own, as YAML.

    Raises:
        UserError: a file is missing, is not YAML, or the preset has a key that the parameters have not.
    """
    yaml = YAML()
    yaml.width = 120
    documents = []
    for path in (params, preset):
        try:
            documents.append(yaml.load(path))
        except FileNotFoundError:
            raise UserError(f"{relative(path)} does not exist: run from the repository's root") from None
        except YAMLError as error:
            raise UserError(f"{relative(path)} is not valid YAML: {one_line(error)}") from None
    document, values = documents
    if not isinstance(values, dict):
        raise UserError(f"{relative(preset)} holds no sections: name a file of presets/")
    replace(document, values, relative(preset))
    sink = io.BytesIO()
    yaml.dump(document, sink)
    return sink.getvalue()


def replace(document: Any, values: dict[str, Any], where: str, path: str = "") -> None:
    """Put values into a document, section by section. Raises `UserError` at a key that it has not."""
    for name, value in values.items():
        inner = f"{path}.{name}" if path else name
        if name not in document:
            raise UserError(f"{where}: params.yaml has no {inner}: check its spelling")
        if isinstance(value, dict) and isinstance(document[name], dict) and inner not in FREE:
            replace(document[name], value, where, inner)
        else:
            document[name] = value

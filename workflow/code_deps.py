"""Writes the code files of every stage into dvc.yaml: the import closure of its module. Run it after adding an import.

python workflow/code_deps.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from framelora.source import import_closure  # noqa: E402

FAMILY = "framer"  # any family: all have the same parts


def code_of(stage: str) -> list[str]:
    """Files a stage runs, with the family's name as a template; the folder for its networks."""
    template = "framelora/families/${model.family}/"
    names = set()
    for path in import_closure(ROOT / f"stages/{stage}.py", FAMILY):
        name = path.relative_to(ROOT).as_posix().replace(f"framelora/families/{FAMILY}/", template)
        names.add(f"{template}networks" if name.startswith(f"{template}networks/") else name)
    return sorted(names)


def main() -> None:
    """Rewrite dvc.yaml in place; everything but the code files stays as it is."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(ROOT / "dvc.yaml")
    for name, stage in document["stages"].items():
        kept = [dep for dep in stage["deps"] if not dep.endswith((".py", "/networks"))]
        templates = [dep for dep in kept if dep.endswith(".j2")]
        stage["deps"] = [dep for dep in kept if dep not in templates] + code_of(name) + templates
    yaml.dump(document, ROOT / "dvc.yaml")


if __name__ == "__main__":
    main()

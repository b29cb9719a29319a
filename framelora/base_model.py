"""The lock file of a base model: digests of its files, so that gigabytes are one small dependency.

`base.lock.json` lies in the base's folder. Its digest is the base's fingerprint in every key.
"""

from __future__ import annotations

from pathlib import Path

from framelora.console import UserError, relative
from framelora.digest import canonical_json, sha256
from framelora.files import file_digest, read_json, write_json

LOCK = "base.lock.json"
MODEL_FILES = (".safetensors", ".json", ".txt", ".model")


def model_files(base: Path) -> list[str]:
    """Files that define a base model, relative to its folder: weights, configs, tokenizers."""
    paths = (path for path in base.rglob("*") if path.is_file() and path.suffix in MODEL_FILES and path.name != LOCK)
    return sorted(path.relative_to(base).as_posix() for path in paths)


def write_lock(base: Path) -> Path:
    """Digest a base model's files and write its lock. Raises `UserError` when the folder holds no weights."""
    names = model_files(base) if base.is_dir() else []
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(f"{relative(base)} holds no .safetensors file: point model.base at a base model's folder")
    entries = {name: {"sha256": file_digest(base / name), "bytes": (base / name).stat().st_size} for name in names}
    write_json(base / LOCK, entries)
    return base / LOCK


def fingerprint(base: Path) -> str:
    """The base model's identity: digest of its lock, once its files are seen to be those of the lock (by length).

    Raises:
        UserError: no such folder, no lock, or other files than the lock names.
    """
    if not base.is_dir():
        raise UserError(f"model.base: {relative(base)} does not exist: put the base model there, or name its folder")
    if not (base / LOCK).is_file():
        raise UserError(f"{relative(base / LOCK)} is missing: `framelora lock {relative(base)}` writes it")
    entries = read_json(base / LOCK)
    found = model_files(base)
    if found != sorted(entries) or any((base / name).stat().st_size != entries[name]["bytes"] for name in found):
        raise UserError(
            f"the files in {relative(base)} are not those of its {LOCK}: restore them, or run "
            f"`framelora lock {relative(base)}` if the change is meant"
        )
    return sha256(canonical_json(entries).encode())


def verify(base: Path) -> list[str]:
    """Names of the files whose digest differs from the lock's (reads every byte)."""
    entries = read_json(base / LOCK)
    return [name for name, entry in entries.items() if file_digest(base / name) != entry["sha256"]]

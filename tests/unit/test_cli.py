"""The command line: what each command prints, and its exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from framelora.base_model import LOCK, fingerprint
from framelora.cells.store import Cell, open_store
from framelora.cli import app


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMELORA_CELLS", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


def put(unit: str, payload: bytes = b"payload") -> Path:
    store, cell = open_store(), Cell("encode/latents", unit, {"unit": unit})
    store.put(cell, payload)
    return store.path(cell.kind, cell.key)


def test_cells_lists_kinds_with_number_and_bytes(checkout: Path) -> None:
    paths = [put("a"), put("b")]
    code, out, _ = run("cells")
    row = next(line for line in out.splitlines() if "encode/latents" in line)
    assert code == 0
    assert " 2 " in row
    assert f"{sum(path.stat().st_size for path in paths)} B" in row


def test_verify_names_damaged_cells_and_repair_removes_them(checkout: Path) -> None:
    good, bad = put("a"), put("b")
    bad.write_bytes(bad.read_bytes()[:-1] + b"?")
    code, out, err = run("cells", "verify")
    assert code == 1
    assert bad.stem[:12] in out
    assert err.count("error: ") == 1 and "--repair" in err
    assert bad.exists()
    assert run("cells", "verify", "--repair")[0] == 0
    assert good.exists() and not bad.exists()
    assert run("cells", "verify")[0] == 0


def test_gc_drops_what_is_old_and_unnamed_after_showing_it(checkout: Path) -> None:
    old, new = put("old"), put("new")
    os.utime(old, (0, 0))
    assert "would drop 1 cells" in run("cells", "gc", "--dry-run")[1]
    assert old.exists()
    assert "dropped 1 cells" in run("cells", "gc")[1]
    assert not old.exists() and new.exists()


def test_lock_writes_the_digests_of_a_base_and_notices_other_files(checkout: Path) -> None:
    base = checkout / "base"
    base.mkdir()
    assert run("lock", "base")[0] == 1
    (base / "weights.safetensors").write_bytes(b"weights")
    assert run("lock", "base")[0] == 0
    assert json.loads((base / LOCK).read_text())["weights.safetensors"]["bytes"] == 7
    before = fingerprint(base)
    (base / "weights.safetensors").write_bytes(b"WEIGHTS")
    assert run("lock", "base")[0] == 0
    assert fingerprint(base) != before


def test_metrics_prints_each_method_and_the_gain(checkout: Path) -> None:
    assert run("metrics")[0] == 1
    totals = {"windows": 2, "image_pairs": 0}
    for method in ("base", "adapter_1"):
        totals |= {f"psnr_{method}": 20.0, f"ssim_{method}": 0.5, f"ends_psnr_{method}": 30.0}
    gain = {"psnr_gain_adapter_1": 0.5, "psnr_gain_adapter_1_low": 0.25, "psnr_gain_adapter_1_high": 0.75}
    (checkout / "reports").mkdir()
    (checkout / "reports/metrics.json").write_text(json.dumps(totals | gain))
    code, out, _ = run("metrics")
    assert code == 0
    assert "+0.50 (+0.25 to +0.75)" in out
    assert "20.00" in out

"""Digests and seeds as pure functions of values. Imports nothing of the project: code that computes cells uses it."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def sha256(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN and infinities are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def draw_seed(*parts: int | str) -> int:
    """A 63-bit seed from what a draw depends on, for example `(seed, "noise", step, sample)`."""
    return int(sha256("/".join(str(part) for part in parts).encode())[:16], 16) >> 1

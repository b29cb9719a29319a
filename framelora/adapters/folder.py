"""The files of an adapter: pure functions of its tensors, configuration and lineage."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import save
from torch import Tensor

from framelora.digest import canonical_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_files(tensors: dict[str, Tensor], config: dict[str, Any], lineage: dict[str, Any]) -> dict[str, bytes]:
    """A PEFT folder: file name -> content. The lineage travels in the weights' header, as one sorted JSON value."""
    metadata = {"framelora": canonical_json(lineage)}
    return {
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        WEIGHTS: save(tensors, metadata=metadata),
    }

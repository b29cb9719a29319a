"""What every section of params.yaml shares: strictness, and the types of its values."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _bucket(text: str) -> str:
    if not re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", text) or any(int(side) % 8 for side in text.split("x")):
        raise ValueError("write a bucket as WIDTHxHEIGHT in pixels, both multiples of 8, for example 512x320")
    return text


Bucket = Annotated[str, AfterValidator(_bucket)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of params.yaml: no unknown keys, no silent conversions, no changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

"""JSON that every reader takes: it has no NaN and no infinity, so they become words."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np


def text(value: Any) -> str:
    """The value as JSON; NaN and the infinities are "nan", "inf" and "-inf", NumPy's numbers are numbers."""
    return json.dumps(_strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

"""Write the cases down, for implementations that Python cannot call."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sce.backend import Array

from .case import Case
from .catalogue import cases as all_cases
from .expected import expected

README = """\
Conformance cases of sce
========================

One NumPy .npz archive for each case. A case gives an input and, for each output, the exact value and how far
an answer may be from it. Arrays are contiguous, in native byte order; layouts are left to the reader.

case               JSON text: "group", "name"; "function" (evaluate, softmax, log_softmax, logsumexp,
                   loss_grad_hess, hvp, softmax_jvp, log_softmax_jvp, log_softmax_vjp,
                   softmax_jacobian, log_softmax_jacobian;
                   binary: sce.binary_loss_grad_hess, whose target is shaped like the logits);
                   "options" (numbers and words as sce.evaluate takes them; arrays are in this archive);
                   "outputs" (names); "dtypes" (array or output: dtype); "out" (where the gradient goes:
                   null for new memory, "in place" for the logits' own, "over v", "float32", "own",
                   "strided").
logits, target     As given, the class axis where option "axis" says (default: the last). bfloat16 is stored
                   as its bits in uint16: "dtypes" says so. Functions other than evaluate have no target.
option_NAME        Options that are arrays: class_weight, pos_weight, sample_weight, logit_bias, v.
expected_OUTPUT    float64 (int64 for argmax, bool for correct). softmax's output is called grad.
allowed_OUTPUT     The largest |answer - expected|, per element, for an answer in the dtype "dtypes" states.
                   0 is to be met exactly. Where expected rounds to NaN or an infinity in that dtype, the
                   answer must be that.
"""


def export(directory: str | os.PathLike[str], cases: Iterable[Case] | None = None) -> int:
    """Write every case (or these) as an .npz archive, and a README.txt; return how many archives.

    The directory is made if need be; it must be empty or hold an earlier export, which is overwritten.

    Each archive holds "case", a JSON text with group, name, function, options, outputs, dtypes and out; the
    inputs "logits", "target", "option_NAME" (bfloat16 as uint16 bits); and per output "expected_OUTPUT" and
    "allowed_OUTPUT", the absolute error allowed per element. What cannot be made here is left out.

    Raises ValueError for a directory that holds other files, NotADirectoryError for a file, and OSError where
    it cannot be written.
    """
    place = Path(directory)
    _prepare(place)
    written = 0
    for case in all_cases() if cases is None else cases:
        if case.skip is None:
            np.savez(place / f"{_file_name(case)}.npz", **_record(case))
            written += 1
    return written


def _prepare(place: Path) -> None:
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(f"{str(place)!r} is a file: name a directory to export to.")
    if place.is_dir():
        others = sorted(p.name for p in place.iterdir() if p.suffix != ".npz" and p.name != "README.txt")
        if others:
            raise ValueError(
                f"{str(place)!r} holds other files, such as {others[0]!r}: name an empty directory."
            )
    place.mkdir(parents=True, exist_ok=True)
    (place / "README.txt").write_text(README, encoding="utf-8")


def _file_name(case: Case) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", case.name.replace("<", "little ").replace(">", "big "))


def _record(case: Case) -> dict[str, Any]:
    known = expected(case)
    inputs = {"logits": case.logits, "target": case.target}
    inputs |= {f"option_{name}": x for name, x in case.options.items() if isinstance(x, np.ndarray)}
    given = {name: np.asarray(x) for name, x in inputs.items() if x is not None}
    facts = {
        "group": case.group,
        "name": case.name,
        "function": case.function,
        "options": {name: x for name, x in case.options.items() if f"option_{name}" not in given},
        "outputs": case.outputs,
        "dtypes": {name: x.dtype.name for name, x in given.items()}
        | {name: dtype.name for name, dtype in known.dtype.items()},
        "out": case.out,
    }
    record: dict[str, Any] = {"case": np.array(json.dumps(facts))}
    record |= {name: _plain(x) for name, x in given.items()}
    for name, want in known.want.items():
        value = want if want.dtype.kind in "ib" else want.astype(np.float64)
        allowed = known.bound[name].allowed.astype(np.float64)
        if want.dtype == np.longdouble:  # the rounding of the expected value itself
            with np.errstate(invalid="ignore"):
                allowed = allowed + np.abs(np.nan_to_num(want - value)).astype(np.float64)
        record[f"expected_{name}"], record[f"allowed_{name}"] = value, allowed
    return record


def _plain(x: Array) -> Array:
    x = np.ascontiguousarray(x).reshape(x.shape)
    if x.dtype.name == "bfloat16":
        return x.view(np.uint16)
    return x.astype(x.dtype.newbyteorder("="))

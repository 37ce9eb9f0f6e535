"""What the command line reads and writes. A file that cannot be is one line that says why."""

from __future__ import annotations

import os
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from sce import strict_json
from sce.backend import Array

_NPY, _ZIP = b"\x93NUMPY", b"PK"  # how the two formats begin


class UsageError(Exception):
    """The command cannot start as asked: printed as one line, exit status 2."""


def one_array(path: Path, what: str, key: str | None = None) -> Array:
    """The array in a .npy; the array `key`, or the only one, in a .npz."""
    names, arrays = _read(path, what, key)
    if names is None:
        return arrays[""]
    if key in arrays:
        return arrays[key]
    if len(names) == 1:
        return arrays[names[0]]
    if key is None:
        raise UsageError(f"{what}: {str(path)!r} holds {_list(names)}: save the one array with np.save.")
    raise UsageError(
        f"{what}: {str(path)!r} holds no array named {key} (it holds {_list(names)}):"
        f" save it with np.savez(file, {key}=...)."
    )


def logits_and_target(logits: Path, target: Path | None) -> tuple[Array, Array]:
    """The two arrays of a comparison, out of two files or one .npz that holds both."""
    if target is not None:
        return one_array(logits, "LOGITS", "logits"), one_array(target, "TARGET", "target")
    names, arrays = _read(logits, "LOGITS", "logits", "target")
    if names is None:
        raise UsageError(
            f"TARGET is missing: {str(logits)!r} holds the logits alone. Give the labels as a second file,"
            " or one .npz with arrays named logits and target."
        )
    if lacking := [key for key in ("logits", "target") if key not in arrays]:
        raise UsageError(
            f"LOGITS: {str(logits)!r} holds no array named {' or '.join(lacking)} (it holds {_list(names)})."
            " Save both with np.savez(file, logits=..., target=...), or give TARGET as a second file."
        )
    return arrays["logits"], arrays["target"]


def _read(path: Path, what: str, *keys: str | None) -> tuple[list[str] | None, dict[str, Array]]:
    """The names in a .npz and those arrays among `keys`, or the only one. A .npy's names are None."""
    where = f"{what}: {str(path)!r}"
    try:
        with path.open("rb") as stream:  # opened here, because np.load leaves a damaged .npz open
            start = stream.read(len(_NPY))
            if not start.startswith((_NPY, _ZIP)):  # np.load takes anything else for a pickle
                raise UsageError(f"{where} is neither .npy nor .npz: save the array with np.save.")
            stream.seek(0)
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return None, {"": _typed(found, where)}
            names = list(found.files)
            wanted = names if len(names) == 1 else [name for name in names if name in keys]
            return names, {name: _typed(found[name], where) for name in wanted}
    except OSError as exc:
        raise UsageError(f"{where} cannot be read: {exc.strerror or exc}.") from exc
    except MemoryError as exc:
        raise UsageError(f"{where} does not fit into memory: {exc}.") from exc
    except (ValueError, EOFError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error) as exc:
        if "pickle" in str(exc):
            raise UsageError(
                f"{where} holds Python objects (dtype object), which sce does not unpickle:"
                " save an array of numbers."
            ) from exc
        raise UsageError(f"{where} is damaged or cut short ({exc}): save it again.") from exc


def _typed(x: Any, where: str) -> Array:
    if not isinstance(x, np.ndarray):
        raise UsageError(f"{where} is a zip archive of other files, not a .npz: save it with np.savez.")
    if x.dtype.kind == "V" and x.dtype.itemsize == 2 and x.dtype.names is None:
        raise UsageError(
            f"{where} has dtype {x.dtype.str}: NumPy's file format does not keep bfloat16. Save"
            " x.astype(np.float32), which holds the same values."
        )
    return x


def _list(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


STDOUT = Path("-")  # of --json: what a person reads goes to the standard error then


class Output:
    """A file to be written at the end: checked at the start, and replaced whole or not at all."""

    def __init__(self, path: Path, option: str) -> None:
        self.path, self.option = path, option
        self._real: Path | None = None
        if option == "--json" and path == STDOUT:
            return
        where = f"{option}: {str(path)!r} cannot be written:"
        try:
            self._real = path.resolve()  # a link keeps pointing to what is replaced
            parent = self._real.parent
            if path.is_dir():
                raise UsageError(f"{where} it is a directory. Name a file in it.")
            if not parent.is_dir():
                raise UsageError(f"{where} there is no directory {str(path.parent)!r}. Create it first.")
            if not os.access(self._real if self._real.exists() else parent, os.W_OK):
                raise UsageError(f"{where} permission denied.")
        except (OSError, RuntimeError) as exc:  # RuntimeError: a loop of links
            raise UsageError(f"{where} {exc}.") from exc

    def write(self, fill: Callable[[IO[bytes]], object]) -> None:
        """Let `fill` write the whole file."""
        if self._real is None:
            fill(sys.stdout.buffer)
            sys.stdout.flush()
            return
        temporary = self._real.with_name(f".{self._real.name}.{os.getpid()}.tmp")
        try:
            if self._real.exists() and not self._real.is_file():  # a pipe or a device: nothing to replace
                with self._real.open("wb") as stream:
                    fill(stream)
                return
            try:
                with temporary.open("wb") as stream:
                    fill(stream)
                os.replace(temporary, self._real)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as exc:
            raise UsageError(
                f"{self.option}: {str(self.path)!r} cannot be written: {exc.strerror or exc}."
            ) from exc

    def write_json(self, value: Any) -> None:
        self.write(lambda stream: stream.write(strict_json.text(value).encode()))


def outputs(*wanted: tuple[Path | None, str], inputs: tuple[Path | None, ...] = ()) -> list[Output | None]:
    """The files to write, each checked; no two of them are one, and none is an input."""
    taken = {path.resolve(): "an input" for path in inputs if path is not None}
    checked: list[Output | None] = []
    for path, option in wanted:
        if path is None:
            checked.append(None)
            continue
        checked.append(Output(path, option))
        if path.resolve() in taken and not _is_sink(path):
            raise UsageError(
                f"{option}: {str(path)!r} is {taken[path.resolve()]} as well: name another file."
            )
        taken[path.resolve()] = f"the file of {option}"
    return checked


def _is_sink(path: Path) -> bool:
    return path.exists() and not path.is_file()

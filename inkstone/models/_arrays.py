"""Numpy arrays on disk for models that are no torch modules: safetensors, never pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from inkstone.errors import CheckpointError
from inkstone.files import read_json, recover, verify_folder

CONFIG, ARRAYS = "config.json", "model.safetensors"
Array = npt.NDArray[Any]
C = TypeVar("C", bound=BaseModel)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays.

    Raises:
        CheckpointError: The disk is full or failing.
    """
    try:
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {path}: {error}") from error


def read_arrays(path: Path, dtypes: Mapping[str, str]) -> dict[str, Array]:
    """Read exactly the named arrays, each of its numpy dtype ("float32"), floats finite.

    The library checks before anything is allocated that the header is sound and that the arrays
    tile the file, so that no claim in it can exceed the file's own size.

    Raises:
        CheckpointError: Missing, damaged, or with other names or dtypes; the message says which.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", fix="give the folder that a save wrote")
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            if names != set(dtypes):
                odd = sorted(names ^ set(dtypes))[0]
                what = "holds an unexpected" if odd in names else "lacks the"
                raise CheckpointError(f"{path} {what} array {odd[:100]!r}")
            found = {name: file.get_tensor(name) for name in sorted(names)}
    except (OSError, SafetensorError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no sound safetensors file: {error}") from error
    for name, array in found.items():
        if array.dtype != dtypes[name]:
            raise CheckpointError(f"{path}: {name} is of {array.dtype}, not {dtypes[name]}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} holds a value that is no finite number")
    return found


def read_settings(kind: type[C], config: Mapping[str, Any], folder: Path) -> C:
    """The settings of a saved model, out of its config.json.

    Raises:
        CheckpointError: They are not such settings.
    """
    try:
        return kind.model_validate(config.get("settings"))
    except ValidationError as error:
        where = f"{folder / CONFIG}: settings"
        raise CheckpointError(f"{where}: {error.errors()[0]['msg']}") from error


def texts(found: Any, where: str, *, some: bool = True) -> tuple[str, ...]:
    """Distinct texts out of a file's JSON, `some` or perhaps none.

    Raises:
        CheckpointError: They are something else.
    """
    sound = isinstance(found, list) and all(isinstance(x, str) for x in found)
    if not sound or (some and not found):
        raise CheckpointError(f"{where} are not a list of texts")
    if len(set(found)) != len(found):
        raise CheckpointError(f"{where} are not distinct")
    return tuple(found)


def read_folder_config(folder: Path, model_type: str) -> dict[str, Any]:
    """The config.json of a saved model of this type, after its hashes were checked.

    Raises:
        CheckpointError: No such folder, another type of model, or damaged.
    """
    recover(folder)
    config = read_json(folder / CONFIG)
    if config.get("model_type") != model_type:
        raise CheckpointError(
            f"{folder} holds a model of type {str(config.get('model_type'))[:100]!r}, "
            f"not {model_type!r}"
        )
    if config.get("format") != 1:
        raise CheckpointError(
            f"{folder / CONFIG}: format {str(config.get('format'))[:20]} is not known",
            fix="it was written by a newer version: update Inkstone",
        )
    verify_folder(folder)
    return config

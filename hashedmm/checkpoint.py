"""Save a network and load it again: safetensors, with the network's config (every hash spec in full) in its metadata.

A model is its stored values *and* its hash: both are in the one file, verified together (see `hashedmm.safefile`). The
state of an unfinished training run is a file of the same format that `hashedmm.nn.train` writes and reads by itself.
Imports safefile and nn.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy as np

from hashedmm import safefile
from hashedmm.nn import MLP, check_arrays, parameter_shapes

KIND = "model"


def save_model(path: str | os.PathLike, model: MLP, **info: Any) -> None:
    """Write a network to a file, atomically.

    Parameters
    ----------
    path : path
        An existing file is replaced. Its folder must exist.
    model : MLP
    **info
        Anything that `json.dumps` takes, to be kept with it, e.g. ``test_error=1.6``. `read_info` gives it back.

    Raises
    ------
    TypeError
        If ``model`` is not an MLP, or ``info`` cannot be written as JSON.
    ValueError
        If the folder does not exist, or a parameter is not finite.

    Of a network of `hashedmm.parallel`, all processes make the call, and process 0 writes the whole network.
    """
    if not isinstance(model, MLP):
        raise TypeError(f"model must be an MLP, got {type(model).__name__}")
    state = model.state()
    if model.ranks.rank == 0:
        safefile.write(path, KIND, {"model": model.config(), "info": info}, state)


def load_model(path: str | os.PathLike, *, xp: ModuleType = np, kernel: str = "auto") -> MLP:
    """Read the network that `save_model` wrote.

    Everything is checked before anything is built: that it is a whole and unaltered file of this format and version,
    that the config and every spec in it are valid, that exactly the parameters it needs are there, float32 and finite.

    Parameters
    ----------
    path : path
    xp : module, numpy or cupy
        Where the parameters go. The network computes the same function on either.
    kernel : str
        See `MLP`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not such a file: the message names the file, what was expected, what came and the fix.
    """
    document, arrays = safefile.read(path, KIND)
    config = _config(path, document)
    check_arrays(arrays, parameter_shapes(config), str(path))
    model = MLP.from_config(config, xp=xp, kernel=kernel)
    model.load_state(arrays)
    return model


def read_info(path: str | os.PathLike) -> dict[str, Any]:
    """The ``info`` that was saved with a model. Errors as in `load_model`."""
    document, _ = safefile.read(path, KIND)
    _config(path, document)
    return document["info"]


def _config(path: str | os.PathLike, document: Any) -> dict[str, Any]:
    """The model's config in a file's document, checked."""
    if not isinstance(document, dict) or set(document) != {"model", "info"} or not isinstance(document["info"], dict):
        raise ValueError(f"{path}: a model file must hold exactly a model and info; save it again with save_model")
    try:
        parameter_shapes(document["model"])
    except (TypeError, ValueError) as e:
        raise ValueError(f"{path}: the config of the model is not valid: {e}") from None
    return document["model"]

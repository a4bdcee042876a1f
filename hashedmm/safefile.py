"""Files that can be trusted: named arrays and one JSON document, written atomically, verified before anything is used.

The file is a safetensors file, so that any safetensors reader shows its arrays. Its metadata has one entry, "hashedmm":
JSON with the format's name, its version, the document, and a SHA-256 of all of these and of every array. A file that is
cut off, altered, of another kind or another version gets a ValueError that says what was found. Nothing is unpickled,
ever. Imports NumPy and safetensors, nothing of this package.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

VERSION = 1
KEY = "hashedmm"  # the one entry of the safetensors metadata
MAX_HEADER = 100 * 2**20  # bytes; the safetensors format allows no more


def check_writable(path: str | os.PathLike, argument: str = "path") -> Path:
    """The file that `write` would replace, if it can. Call this before long work whose result is to go there.

    Raises
    ------
    ValueError
        If the path is a folder, or its folder is missing or cannot be written to.
    """
    target = Path(os.path.realpath(path))  # through links: the file is replaced, not the link
    if target.is_dir():
        raise ValueError(f"{argument} must name a file, got the folder {path}; add a file name, e.g. net.safetensors")
    if not target.parent.is_dir():
        raise ValueError(f"{argument}={path}: the folder {target.parent} does not exist; make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{argument}={path}: the folder {target.parent} cannot be written to; choose another")
    return target


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file, all or nothing.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and then take the name in one step: a
    reader, or a power cut, finds the old file or the new one, never half of one. A file that is replaced keeps its
    permissions.
    """
    target = check_writable(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: str | os.PathLike, kind: str, document: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a document and arrays to a file, all or nothing (`write_bytes`). Equal contents give equal bytes.

    Parameters
    ----------
    path : path of the file; an existing one is replaced
    kind : what the file holds, e.g. "model"; `read` asks for it
    document : what `json.dumps` takes, without NaN or infinities
    arrays : name -> NumPy array

    Raises
    ------
    TypeError, ValueError
        If the document is not JSON-able, or an array has no safetensors dtype or values that are not finite.
    """
    target = check_writable(path)
    document = json.loads(json.dumps(document, allow_nan=False))  # as it will be read: lists, keys that are text
    tensors = {name: np.asarray(a, order="C") for name, a in arrays.items()}
    for name, a in tensors.items():
        if a.dtype.kind not in "fiub" or a.dtype.itemsize > 8:
            raise TypeError(f"array {name!r} must be of a float, integer or bool dtype of up to 64 bits, got {a.dtype}")
        if not _finite(a):
            raise ValueError(f"array {name!r} must be finite to be saved, got NaN or infinities")
    header = {"format": f"hashedmm {kind}", "version": VERSION, "document": document}
    header["sha256"] = _digest(header, tensors)
    data = safetensors.numpy.save(tensors, metadata={KEY: json.dumps(header)})
    write_bytes(target, data)


def read(path: str | os.PathLike, kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Read and verify a file of `write`.

    Parameters
    ----------
    path : path of the file
    kind : what it must hold

    Returns
    -------
    document : as it was written
    arrays : name -> array; all floating values are finite

    Raises
    ------
    OSError
        If the file is missing or cannot be read (FileNotFoundError, PermissionError, ...).
    ValueError
        If it is not what `write` wrote: the message names the file, what was expected and what was found.
    """
    data = Path(path).read_bytes()
    header_text = _header(path, data)
    try:
        header = json.loads(header_text)
        if not isinstance(header, dict):
            raise ValueError(f"an object was expected, got {type(header).__name__}")
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: the header is not the JSON of a safetensors file ({e}); {_DAMAGED}") from None
    metadata = header.get("__metadata__")
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ValueError(
            f"{path}: a safetensors file, but not one of hashedmm: its metadata has no entry {KEY!r}; expected a "
            f"hashedmm {kind}"
        )
    try:
        ours = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: the metadata entry {KEY!r} is not JSON ({e}); {_DAMAGED}") from None
    if not isinstance(ours, dict) or not {"format", "version"} <= set(ours):
        raise ValueError(f"{path}: the metadata entry {KEY!r} names no format and version; {_DAMAGED}")
    if ours["format"] != f"hashedmm {kind}":
        hint = _HINTS.get(str(ours["format"]), "")
        raise ValueError(f"{path}: expected a hashedmm {kind}, got the format {ours['format']!r}{hint}")
    if type(ours["version"]) is not int or ours["version"] != VERSION:
        raise ValueError(
            f"{path}: this program reads version {VERSION} of the format, got version {ours['version']!r}; "
            "read it with the release of hashedmm that wrote it"
        )
    if set(ours) != {"format", "version", "document", "sha256"}:
        raise ValueError(f"{path}: the metadata's keys are {sorted(ours)}, expected format, version, document, sha256")
    try:
        arrays = safetensors.numpy.load(data)
    except Exception as e:  # the library's own error class, or a KeyError for dtypes that NumPy lacks
        raise ValueError(f"{path}: the arrays do not agree with the header ({e}); {_DAMAGED}") from None
    claimed = ours.pop("sha256")
    if claimed != _digest(ours, arrays):
        raise ValueError(f"{path}: the SHA-256 of the contents is not the one written in the file; {_DAMAGED}")
    for name, a in arrays.items():
        if not _finite(a):
            raise ValueError(f"{path}: the array {name!r} holds NaN or infinities: finite values were expected")
    return ours["document"], arrays


_DAMAGED = "the file was altered or damaged: restore it from a copy, or save it again"
_HINTS = {
    "hashedmm training state": "; a training state is continued with train(..., resume=path)",
    "hashedmm model": "; a model is loaded with load_model(path)",
}


def _header(path: str | os.PathLike, data: bytes) -> str:
    """The header of a safetensors file, or a ValueError that says what the bytes are instead."""
    start = f"{path}: expected a safetensors file, got "
    if not data:
        raise ValueError(start + "an empty file; save it again")
    if data[:1] == b"\x80" and data[1:2] in b"\x00\x01\x02\x03\x04\x05" and (data[8:9] != b"{"):
        raise ValueError(start + "a pickle, which can run any code when opened and is never read here")
    if data[:2] == b"PK":
        raise ValueError(start + "a zip archive (.npz files and PyTorch's .pt files are zip archives)")
    if data[:6] == b"\x93NUMPY":
        raise ValueError(start + "a NumPy .npy file")
    if data[:2] == b"\x1f\x8b":
        raise ValueError(start + "a gzip file; unpack it first")
    if len(data) < 10:
        raise ValueError(start + f"{len(data)} bytes: the file is cut off; restore it from a copy, or save it again")
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER or data[8:9] != b"{":
        raise ValueError(start + f"something else (the first bytes are {data[:8].hex(' ')})")
    if size > len(data) - 8:
        raise ValueError(
            start + f"a part of one: the header alone has {size} bytes and only {len(data) - 8} follow; the file is "
            "cut off; restore it from a copy, or save it again"
        )
    try:
        return data[8 : 8 + size].decode()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: the header is not UTF-8 text ({e}); {_DAMAGED}") from None


def _finite(a: np.ndarray) -> bool:
    return a.dtype.kind != "f" or bool(np.isfinite(a).all())


def _digest(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a header and of every array's name, dtype, shape and bytes."""
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        a = arrays[name]
        sha.update(json.dumps([name, a.dtype.name, a.shape]).encode())
        sha.update(a.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()

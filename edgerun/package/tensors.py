"""Where the tensors of a package lie, checked, and views of them: each data file is mapped once, nothing is copied."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgerun.package.layout import Array, Part
from edgerun.package.problem import damaged, quoted

if TYPE_CHECKING:
    from onnx import TensorProto

LINE = 64
"""Bytes: every tensor starts at a multiple."""

_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1"), 10: np.dtype("<f2")}
"""TensorProto.DataType -> the element types that a package may hold."""
_EXTERNAL = 1  # TensorProto.EXTERNAL


class Wanted(NamedTuple):
    """What an initializer must be. node: that wants it. vector: small, and its values must be finite (and positive, if
    so said)."""

    part: Part
    node: str
    vector: bool = False
    positive: bool = False


class TensorReader:
    """Checks initializers of `model` (the path of model.onnx) and gives read-only views of them."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.folder = model.parent
        self.files: dict[str, Array] = {}

    def view(self, tensor: TensorProto, wanted: Part) -> Array:
        """A read-only view of one initializer. Raises PackageError unless dtype, shape, place and size are as wanted.

        Touches no page of the data file.
        """
        name = quoted(tensor.name)
        dtype = _DTYPES.get(tensor.data_type)
        if dtype != wanted.dtype:
            found = dtype.name if dtype is not None else f"ONNX element type {tensor.data_type}"
            raise damaged(self.model, f"tensor {name} is {found}, expected {wanted.dtype.name}")
        shape = tuple(tensor.dims)
        if shape != wanted.shape:
            raise damaged(self.model, f"tensor {name} has shape {list(shape)}, expected {list(wanted.shape)}")
        size = math.prod(wanted.shape) * wanted.dtype.itemsize
        if tensor.data_location == _EXTERNAL:
            data = self._external(tensor, name, size)
        else:
            data = self._in_file(tensor, name, size)
        return data.view(wanted.dtype).reshape(wanted.shape)

    def _in_file(self, tensor: TensorProto, name: str, size: int) -> Array:
        if len(tensor.raw_data) != size:
            what = f"tensor {name} has {len(tensor.raw_data)} bytes in field raw_data, expected {size}"
            raise damaged(self.model, what)
        # kernels may count on the alignment that external tensors have
        buffer = np.empty(size + LINE, np.uint8)
        start = -buffer.ctypes.data % LINE
        data = buffer[start : start + size]
        data[:] = np.frombuffer(tensor.raw_data, np.uint8)
        data.flags.writeable = False
        return data

    def _external(self, tensor: TensorProto, name: str, size: int) -> Array:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if len(entries) != len(tensor.external_data):
            raise damaged(self.model, f"tensor {name} has a field of external_data twice")
        if unknown := entries.keys() - {"location", "offset", "length", "checksum"}:
            what = f"tensor {name} has the unknown field {quoted(min(unknown))} in external_data"
            raise damaged(self.model, what)
        numbers = []
        for key in ("offset", "length"):
            text = entries.get(key, "")
            if not (text.isascii() and text.isdigit() and len(text) <= 18):
                raise damaged(
                    self.model, f"tensor {name} has external {key} {quoted(text)}, expected a number of bytes"
                )
            numbers.append(int(text))
        offset, length = numbers
        if length != size:
            raise damaged(self.model, f"tensor {name} has external length {length}, its shape takes {size} bytes")
        if offset % LINE:
            raise damaged(self.model, f"tensor {name} is at offset {offset}, expected a multiple of {LINE}")
        data = self._file(entries.get("location", ""), name)
        if offset + length > len(data):
            what = f"tensor {name} ends at byte {offset + length} of {quoted(entries['location'])}"
            raise damaged(self.model, f"{what}, which has only {len(data)} bytes (cut short?)")
        return data[offset : offset + length]

    def _file(self, location: str, name: str) -> Array:
        if location in self.files:
            return self.files[location]
        path = self.folder / self._inside(location, name)
        try:
            # a pipe or device would block or lie about its size
            if not stat.S_ISREG(path.stat().st_mode):
                raise damaged(path, f"holds tensor {name} but is no regular file")
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                data: Array = np.frombuffer(map_file(file.fileno()), np.uint8) if size else np.empty(0, np.uint8)
        except OSError as error:
            raise damaged(path, f"cannot be read ({error.strerror}), it holds tensor {name}") from error
        self.files[location] = np.asarray(data)
        return self.files[location]

    def _inside(self, location: str, name: str) -> Path:
        """The path of a data file, refused unless it is inside the package's folder, links followed."""
        parts = PurePosixPath(location).parts
        outside = PurePosixPath(location).is_absolute() or ".." in parts or "\0" in location
        windows = PureWindowsPath(location)
        outside = outside or bool(windows.drive or windows.root) or "\\" in location
        if not parts or outside or not self._resolves_inside(location):
            what = f"tensor {name} is in {quoted(location)}, not inside the package's folder"
            raise damaged(self.model, what, "do not use this package, or export it again with `edgerun export`")
        return Path(location)

    def _resolves_inside(self, location: str) -> bool:
        try:
            return (self.folder / location).resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError):  # a loop of links
            return False


def map_file(file: int) -> mmap.mmap:
    """A file, mapped in pages of 2 MiB where the system can: decoding reads all weights for every token, and looking up
    small pages takes a tenth of the time that memory does."""
    mapping = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    if (huge := getattr(mmap, "MADV_HUGEPAGE", None)) is not None:  # Linux
        with contextlib.suppress(OSError):  # a kernel or a file system that has none
            mapping.madvise(huge)
    return mapping


def finite(path: Path, name: str, values: Array, *, positive: bool = False) -> None:
    """Raises PackageError unless all values are finite (and positive). Reads the tensor: for small ones only."""
    bad = ~np.isfinite(values) | (values <= 0) if positive else ~np.isfinite(values)
    if bad.any():
        at = int(np.argmax(bad.ravel()))
        kind = "finite and positive" if positive else "finite"
        raise damaged(path, f"tensor {quoted(name)} has {values.ravel()[at]} at index {at}, expected {kind} numbers")

"""The columns of a model's weights, laid out for skipping: made from the package on first use, a file in the cache from
then on, mapped and shared by all processes. It takes as much room as the linear layers themselves (on disk; in memory,
what is read of it, which the system takes back where it is short).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.package import layout
from edgerun.package.layout import GROUP, dequantise, unpack
from edgerun.package.tensors import map_file
from edgerun.program.tape import Tape
from edgerun.sources import cache
from edgerun.sparsity.layout import pack, parts
from edgerun.sparsity.projections import Projection

if TYPE_CHECKING:
    from edgerun.program.open import Package

REVISION = 1
"""To be raised when ``layout`` or this file's form changes."""
_ALIGNMENT = 64


class Columns(NamedTuple):
    """A projection's weights column by column ("q", "d", "m"), and what its inputs are worth: float32 [whole groups of
    k], the norm of their columns, over the layers together, relative to the norms' root mean square."""

    arrays: dict[str, NDArray[Any]]
    worth: NDArray[np.float32]


def open_columns(package: Package, tape: Tape, wanted: Sequence[Projection]) -> list[Columns]:
    """The columns of these projections of the package's tape. Raises HubError if the cache cannot be written."""
    places, size = _places(wanted)
    path = cache.cache_root() / "columns" / f"{_key(package, wanted)}.columns"
    if not _is_whole(path, size):
        with cache.lock(path.name):
            if not _is_whole(path, size):
                _write(path, size, places, package, tape, wanted)
    with cache.writing(path), path.open("rb") as file:
        mapped = np.frombuffer(map_file(file.fileno()), np.uint8)
    return [_views(mapped, one) for one in places]


Place = dict[str, tuple[int, "np.dtype[Any]", tuple[int, ...]]]


def _places(wanted: Sequence[Projection]) -> tuple[list[Place], int]:
    """Where in the file the arrays of each projection are, and the file's size."""
    found: list[Place] = []
    end = 0
    for projection in wanted:
        arrays = parts(projection.fmt, projection.rows, projection.k)
        shapes = {name: (part.dtype, part.shape) for name, part in arrays.items()}
        shapes["worth"] = (np.dtype("<f4"), (-(-projection.k // GROUP) * GROUP,))
        place: Place = {}
        for name, (dtype, shape) in shapes.items():
            place[name] = (end, dtype, shape)
            end += -(-dtype.itemsize * int(np.prod(shape)) // _ALIGNMENT) * _ALIGNMENT
        found.append(place)
    return found, end


def _views(mapped: NDArray[np.uint8], place: Place) -> Columns:
    views = {}
    for name, (start, dtype, shape) in place.items():
        views[name] = mapped[start : start + dtype.itemsize * int(np.prod(shape))].view(dtype).reshape(shape)
    worth = views.pop("worth")
    return Columns(views, worth)


def _is_whole(path: Path, size: int) -> bool:
    """Files are renamed when they are finished, and any bytes are weights: the size is all that can be wrong."""
    return path.is_file() and path.stat().st_size == size


def _key(package: Package, wanted: Sequence[Projection]) -> str:
    """What the file was made from: the graph, and its data by name, size and time."""
    digest = hashlib.sha256(repr((REVISION, [(p.name, p.fmt, p.rows, p.k) for p in wanted])).encode())
    model = package.folder / "model.onnx"
    digest.update(model.read_bytes())
    for path in sorted(package.folder.iterdir()):
        if path.suffix != ".json" and path != model and path.is_file():
            status = path.stat()
            digest.update(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:32]


def _write(
    path: Path, size: int, places: Sequence[Place], package: Package, tape: Tape, wanted: Sequence[Projection]
) -> None:
    """Writes the file beside and renames it, a projection at a time."""
    with cache.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            with beside.open("wb") as file:
                for place, projection in zip(places, wanted, strict=True):
                    for name, array in _made(package, tape, projection).items():
                        file.seek(place[name][0])
                        file.write(array.data)
                file.truncate(size)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def _made(package: Package, tape: Tape, projection: Projection) -> dict[str, NDArray[Any]]:
    names = {record: site.name for site in tape.sites if site.kind == "linear" for record in site.records}
    wanted = parts(projection.fmt, projection.rows, projection.k)
    shapes = [(n, projection.k) for n in projection.rows]
    stored = [
        {part: package.tensor(f"{names[record]}.{part}") for part in layout.parts(projection.fmt, *shape)}
        for record, shape in zip(projection.records, shapes, strict=True)
    ]
    arrays = {name: np.empty(part.shape, part.dtype) for name, part in wanted.items()}
    if arrays:
        pack(projection.fmt, [unpack(projection.fmt, t, *s) for t, s in zip(stored, shapes, strict=True)], arrays)
    squares = np.zeros(-(-projection.k // GROUP) * GROUP)
    for tensors, (n, k) in zip(stored, shapes, strict=True):
        squares[:k] += np.square(dequantise(projection.fmt, tensors, n, k)).sum(0, dtype=np.float64)
    norms = np.sqrt(squares)
    root = np.sqrt(squares[: projection.k].mean())
    arrays["worth"] = (norms / root if root > 0 else np.ones_like(norms)).astype(np.float32)
    return arrays

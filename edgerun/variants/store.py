"""The variant file: safetensors that hold a fine-tuned model's sparse delta, written once, mapped and checked to read.

Tensors, by the name W that a matrix has in a model package ("layers.3.mlp.up_proj.weight"): W.codes, W.scales and, for
masks without windows, W.starts (see ``coding``); of a vector, W.delta float32 [n]. The header's ``__metadata__`` holds
``format`` ("edgerun-variant"), ``version``, ``base`` (the fingerprint of the base's original weights), ``method``;
``parameters``, ``quality`` and ``matrices`` (name -> shape, window, bits) as JSON; ``sha256`` of everything else.

Format of the container: huggingface.co/docs/safetensors. Written and read here, because the package would read a whole
tensor before it can be written, and checks neither places nor contents as kernels need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import OptionError, VariantError
from edgerun.package.tensors import map_file
from edgerun.variants.check import check_coded
from edgerun.variants.coding import Coded, DenseDelta, SparseDelta, decode, encode, problem
from edgerun.variants.views import Views, array, offset

FORMAT, VERSION = "edgerun-variant", 1
_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "BF16": np.dtype("<u2"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 64 << 20
_LINE = 64

__all__ = ["DenseDelta", "SparseDelta", "Variant", "open_variant", "write_variant"]


@dataclass(frozen=True)
class Variant:
    """An open variant file, every size and position of which has been checked.

    base: fingerprint of the base's original weights. method, parameters, quality: what its maker wrote. bytes: of the
    file. matrices: by package name. vectors: float32 [n], what is added to norms and biases. Arrays are views of
    ``data``, the mapped file, made anew whenever they are asked for.
    """

    path: Path
    base: str
    method: str
    parameters: Mapping[str, Any]
    quality: Mapping[str, Any]
    bytes: int
    matrices: Mapping[str, Coded] = field(repr=False)
    vectors: Mapping[str, NDArray[np.float32]] = field(repr=False)
    data: NDArray[np.uint8] = field(repr=False)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.name.removesuffix(".safetensors")

    def names(self) -> list[str]:
        """Every tensor that it changes."""
        return [*self.matrices, *self.vectors]

    def delta(self, name: str) -> SparseDelta | DenseDelta:
        """One tensor's delta in plain order, exactly what the kernels add."""
        if name in self.vectors:
            return DenseDelta(np.array(self.vectors[name]))
        return decode(self.matrices[name])


# --- writing ----------------------------------------------------------------------------------------------------------


def write_variant(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, SparseDelta | DenseDelta]],
    *,
    base: str,
    method: str,
    parameters: Mapping[str, object],
    quality: Mapping[str, object] = {},
    bits: int = 4,
) -> None:
    """Writes a variant file; what was at ``path`` is replaced once the new one is whole.

    tensors: one at a time, by the names of the model package; only the coded form of one is in memory. base: the
    fingerprint of the base's original weights (``edgerun_exporters.fingerprint``). parameters, quality: JSON values.
    bits: of the values, 4 or 8.
    Raises VariantError for a delta that makes no sense and where the disk refuses, OptionError for other bits.
    """
    if bits not in (4, 8):
        raise OptionError(f"bits is {bits!r}; it must be 4 or 8")
    place = Path(path)
    partial = place.with_name(f"{place.name}.partial-{os.getpid()}")
    payload = partial.with_name(f"{partial.name}.data")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        writer = _Writer(place, payload, bits)
        with writer:
            for name, delta in tensors:
                writer.add(name, delta)
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "base": base,
            "method": method,
            "parameters": json.dumps(dict(parameters), sort_keys=True),
            "quality": json.dumps(dict(quality), sort_keys=True),
            "matrices": json.dumps(writer.matrices),
        }
        metadata["sha256"] = _digest(metadata, writer.places, writer.hash.hexdigest())
        header = json.dumps({"__metadata__": metadata, **writer.places}).encode()
        header += b" " * (-(8 + len(header)) % _LINE)
        with partial.open("wb") as file, payload.open("rb") as data:
            file.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(data, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, place)
    except OSError as error:
        raise VariantError(
            f"{place}: cannot be written ({error.strerror or error}); free some room or choose another place"
        ) from error
    finally:
        for path_ in (partial, payload):
            with contextlib.suppress(OSError):
                path_.unlink(missing_ok=True)


class _Writer:
    """Appends tensors to a file of data, and notes where they lie."""

    def __init__(self, place: Path, payload: Path, bits: int) -> None:
        self.place, self.payload, self.bits = place, payload, bits
        self.places: dict[str, dict[str, Any]] = {}
        self.matrices: dict[str, dict[str, Any]] = {}
        self.hash = hashlib.sha256()
        self.size = 0
        self._names: set[str] = set()
        self._file: BinaryIO

    def __enter__(self) -> None:
        self._file = self.payload.open("wb")

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, name: str, delta: SparseDelta | DenseDelta) -> None:
        if name in self._names:
            raise VariantError(f"{self.place}: tensor {name} is given twice; correct the program that makes the delta")
        self._names.add(name)
        if isinstance(delta, DenseDelta):
            if delta.values.ndim != 1 or not np.isfinite(delta.values).all():
                raise VariantError(f"{self.place}: the delta of {name} is no vector of finite numbers; train again")
            self._append(f"{name}.delta", delta.values.astype("<f4"))
            return
        if wrong := problem(delta):
            raise VariantError(f"{self.place}: the delta of {name} cannot be written: {wrong}")
        coded = encode(delta, self.bits)
        self._append(f"{name}.codes", coded.codes)
        self._append(f"{name}.scales", coded.scales)
        if coded.starts is not None:
            self._append(f"{name}.starts", coded.starts)
        self.matrices[name] = {"shape": list(coded.shape), "window": coded.window, "bits": coded.bits}

    def _append(self, name: str, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
        self._file.write(data)
        self.hash.update(data)
        end = self.size + len(data)
        kind = _NAMES[array.dtype]
        self.places[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [self.size, end]}
        self.size = end


def _digest(metadata: Mapping[str, str], places: Mapping[str, Any], payload: str) -> str:
    """sha256 over all that a file says but for the digest itself."""
    said = {key: value for key, value in metadata.items() if key != "sha256"}
    text = json.dumps([said, places, payload], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def open_variant(path: str | os.PathLike[str]) -> Variant:
    """Maps a variant file and checks all of it: the checksum, every shape, position and scale.

    Raises VariantError: one line that says what is wrong.
    """
    place = Path(path)
    data, length, text = _mapped(place)
    header = _header(place, len(data), length, text)
    start = 8 + length
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise VariantError(f"{place}: not a variant but other safetensors; make one with `edgerun variant create`")
    with _broken(place):
        version = int(metadata["version"])
        if version > VERSION:
            raise VariantError(
                f"{place}: the variant has format version {version}, this edgerun reads up to {VERSION}; upgrade "
                "edgerun (pip install --upgrade edgerun)"
            )
        tensors = dict(_tensors(place, header, data[start:]))
        payload = hashlib.sha256(data[start:].data).hexdigest()
        if metadata.get("sha256") != _digest(metadata, header, payload):
            raise damaged(place, "its checksum is wrong, so it was edited or not copied whole")
        texts = [metadata[key] for key in ("base", "method")]
        tables = [json.loads(metadata[key]) for key in ("parameters", "quality", "matrices")]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(table, dict) for table in tables):
            raise damaged(place, "its metadata is of the wrong kind")
        matrices = {name: _matrix(place, name, entry, tensors) for name, entry in tables[2].items()}
        vectors = {}
        for name in [name for name in tensors if name.endswith(".delta")]:
            vector = vectors[name.removesuffix(".delta")] = tensors.pop(name)
            if vector.dtype != _DTYPES["F32"] or vector.ndim != 1 or not np.isfinite(vector).all():
                raise damaged(place, f"tensor {name!r} is no vector of finite float32")
        if tensors:
            raise damaged(place, f"tensor {next(iter(tensors))!r} belongs to no matrix")
    base, method = texts
    _forget_header(data, start)
    coded, plain = Views(data, matrices, _place, _coded), Views(data, vectors, _place_of_vector, _vector)
    return Variant(place, base, method, tables[0], tables[1], len(data), coded, plain, data)


def _place(data: NDArray[np.uint8], coded: Coded) -> tuple[int, ...]:
    codes, scales, starts = coded.codes, coded.scales, coded.starts
    gaps = (-1, 0) if starts is None else (offset(data, starts), len(starts))
    places = offset(data, codes), *codes.shape, offset(data, scales), len(scales)
    return (*coded.shape, coded.window, coded.bits, *places, *gaps)


def _coded(data: NDArray[np.uint8], place: Sequence[int]) -> Coded:
    n, k, window, bits, codes, units, lines, width, scales, n_scales, starts, n_starts = place
    return Coded(
        (n, k),
        window,
        bits,
        array(data, codes, _DTYPES["U8"], units, lines, width),
        array(data, scales, _DTYPES["BF16"], n_scales),
        None if starts < 0 else array(data, starts, _DTYPES["I32"], n_starts),
    )


def _place_of_vector(data: NDArray[np.uint8], vector: NDArray[np.float32]) -> tuple[int, int]:
    return offset(data, vector), len(vector)


def _vector(data: NDArray[np.uint8], place: Sequence[int]) -> NDArray[np.float32]:
    return array(data, place[0], _DTYPES["F32"], place[1])


def damaged(place: Path, what: str) -> VariantError:
    """The error for a file whose contents are wrong."""
    plain = "".join(c if c.isprintable() else "?" for c in what)[:400]
    return VariantError(f"{place}: the variant is damaged: {plain}; copy or make it again")


@contextlib.contextmanager
def _broken(place: Path) -> Iterator[None]:
    """What a header of the wrong kind raises, as one line."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise damaged(place, f"its header makes no sense ({error})") from None


def _mapped(place: Path) -> tuple[NDArray[np.uint8], int, bytes]:
    """The file, the length that its header says to have, and the header's text, which is read, not mapped: it is
    wanted only once."""
    try:
        with place.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 16:
                raise damaged(place, f"it has only {size} bytes")
            length = int.from_bytes(file.read(8), "little")
            text = file.read(min(length, _MAX_HEADER, size))
            return np.frombuffer(map_file(file.fileno()), np.uint8), length, text
    except FileNotFoundError:
        raise VariantError(f"{place}: no such variant; `edgerun variant list` shows those that have a name") from None
    except OSError as error:
        raise VariantError(f"{place}: cannot be read ({error.strerror or error}); check the path") from None


def _forget_header(data: NDArray[np.uint8], start: int) -> None:
    """Gives back the pages that came to memory beside the first tensors'."""
    mapping = getattr(data.base, "obj", None)
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and start >= mmap.PAGESIZE:
        mapping.madvise(mmap.MADV_DONTNEED, 0, start // mmap.PAGESIZE * mmap.PAGESIZE)


def _header(place: Path, size: int, length: int, text: bytes) -> dict[str, Any]:
    if length > min(_MAX_HEADER, size - 8) or not text.startswith(b"{"):
        raise VariantError(f"{place}: not a variant: no safetensors header, or cut short; check the path")
    with _broken(place):
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("no object")
        return header
    raise AssertionError


def _tensors(place: Path, header: dict[str, Any], data: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Views of all tensors, which must lie one behind another and fill the file."""
    at = 0
    for name, entry in header.items():
        dtype, shape = _DTYPES.get(entry["dtype"]), entry["shape"]
        begin, end = entry["data_offsets"]
        if dtype is None or not all(type(n) is int and 0 <= n < 1 << 40 for n in (*shape, begin, end)):
            raise damaged(place, f"tensor {name!r} is of a kind that no variant has")
        if begin != at or end - begin != math.prod(shape) * dtype.itemsize:
            raise damaged(place, f"tensor {name!r} lies in the wrong place, or its size and shape disagree")
        if end > len(data):
            raise damaged(
                place, f"it is cut short: tensor {name!r} ends at byte {end} of the data, which has {len(data)}"
            )
        view: Any = data[begin:end]
        if view.ctypes.data % dtype.itemsize:
            raise damaged(place, f"tensor {name!r} is not aligned")
        yield name, view.view(dtype).reshape(shape)
        at = end
    if at != len(data):
        raise damaged(place, f"its tensors end at byte {at} of the data, which has {len(data)}")


def _matrix(place: Path, name: str, entry: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Coded:
    n, k = entry["shape"]
    window, bits = entry["window"], entry["bits"]
    if not all(type(number) is int for number in (n, k, window, bits)):
        raise ValueError(f"sizes of {name}")
    codes, scales = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scales")
    coded = Coded((n, k), window, bits, codes, scales, None if window else tensors.pop(f"{name}.starts"))
    if wrong := check_coded(coded):
        raise damaged(place, f"{name}: {wrong}")
    return coded

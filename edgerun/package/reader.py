"""Opening a model package: nothing of it reaches a kernel before all of it has been checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import PackageError
from edgerun.package.config import Config, read_config
from edgerun.package.layout import Array
from edgerun.package.problem import damaged, quoted
from edgerun.package.proto import messages
from edgerun.package.tensors import TensorReader, finite
from edgerun.package.validate import check_graph, check_model

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

CONFIG, MODEL = "edgerun.json", "model.onnx"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_MODEL_LIMIT = 256 << 20
"""Bytes of model.onnx: a graph takes a few hundred KiB, weights belong in external data."""


@dataclass(frozen=True)
class Package:
    """A model package whose every name, shape, type, size and offset has been checked.

    folder: where it is.  config: edgerun.json.  graph: the ONNX graph, of the one form that `validate` describes.
    bytes: size of all its files.
    """

    folder: Path
    config: Config
    graph: GraphProto = field(repr=False)
    bytes: int
    _tensors: dict[str, Array] = field(repr=False)

    def tensor(self, name: str) -> Array:
        """An initializer as a read-only view of the mapped file, in the stored layout (see edgerun.package.layout).

        Raises PackageError if the graph has no initializer of that name.
        """
        try:
            return self._tensors[name]
        except KeyError:
            raise damaged(self.folder / MODEL, f"there is no tensor {quoted(name)}") from None


def open_package(folder: str | os.PathLike[str]) -> Package:
    """Open and check a package folder, without reading its weights.

    Raises PackageError with one line that names the file, the tensor, node or field, what is wrong and what to do.
    """
    root = Path(folder)
    _check_files(root)
    config = read_config(root / CONFIG)
    path = root / MODEL
    model = _parse(path)
    try:
        check_model(path, model)
        wanted = check_graph(path, model.graph, config)
        reader = TensorReader(path)
        tensors: dict[str, Array] = {}
        for tensor in model.graph.initializer:
            if tensor.name in tensors:
                raise damaged(path, f"tensor {quoted(tensor.name)} is there twice")
            if tensor.name not in wanted:
                raise damaged(path, f"tensor {quoted(tensor.name)} belongs to no node")
            tensors[tensor.name] = reader.view(tensor, wanted[tensor.name].part)
    except (UnicodeDecodeError, TypeError, AttributeError) as error:
        # Protobuf decodes texts when they are read, and some versions give those that are no UTF-8 as bytes.
        if isinstance(error, UnicodeDecodeError) or _has_broken_text(model):
            raise damaged(path, "a name is no UTF-8") from error
        raise
    for name, want in wanted.items():
        if name not in tensors:
            raise damaged(path, f"tensor {quoted(name)} of node {quoted(want.node)} is missing")
        if want.vector:
            finite(path, name, tensors[name], positive=want.positive)
    size = sum((root / name).stat().st_size for name in (CONFIG, MODEL, *TEXT_FILES))
    size += sum(len(data) for data in reader.files.values())
    return Package(root, config, model.graph, size, tensors)


def _has_broken_text(message: Any) -> bool:
    """Whether any text of a protobuf message is not UTF-8."""
    for descriptor, value in message.ListFields():
        repeated = hasattr(value, "__len__") and not isinstance(value, str | bytes)
        for item in value if repeated else [value]:
            if descriptor.type == descriptor.TYPE_MESSAGE and _has_broken_text(item):
                return True
            if descriptor.type == descriptor.TYPE_STRING and isinstance(item, bytes):
                return True
    return False


def _check_files(root: Path) -> None:
    if not root.exists():
        raise PackageError(f"{root}: no such folder; give a package folder, made with `edgerun export`")
    if not root.is_dir():
        raise PackageError(f"{root}: is no model package but a file; make a package of it with `edgerun export`")
    if not (root / CONFIG).exists():
        raise PackageError(f"{root}: is no model package, it has no {CONFIG}; make one with `edgerun export`")
    for name in (CONFIG, MODEL, *TEXT_FILES):
        if not (root / name).is_file():
            raise damaged(root / name, "is no regular file" if (root / name).exists() else "is missing")


def _parse(path: Path) -> ModelProto:
    try:
        size = path.stat().st_size
        if size > _MODEL_LIMIT:
            raise damaged(path, f"has {size} bytes, expected at most {_MODEL_LIMIT} (weights are external data)")
        content = path.read_bytes()
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from error
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model: Any = messages().ModelProto.FromString(content)
    except (DecodeError, RuntimeError) as error:  # RuntimeError: the slow pure-Python protobuf
        raise damaged(path, f"is no ONNX model, or cut short ({size} bytes)") from error
    return model  # type: ignore[no-any-return]

"""Reading the files of a package: edgerun.json, the graph, and the tensors that it wants, mapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import PackageError
from edgerun.package.config import Config, read_config
from edgerun.package.layout import Array
from edgerun.package.problem import damaged, quoted
from edgerun.package.proto import messages
from edgerun.package.tensors import TensorReader, Wanted, finite
from edgerun.package.validate import check_model

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

CONFIG, MODEL = "edgerun.json", "model.onnx"
TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_MODEL_LIMIT = 256 << 20
"""Bytes of model.onnx: a graph takes a few hundred KiB, weights belong in external data."""


def read_model(root: Path) -> tuple[Config, ModelProto]:
    """edgerun.json, and model.onnx with its functions checked, but nothing of its graph yet.

    Raises PackageError with one line that names the file, what is wrong and what to do.
    """
    _check_files(root)
    config = read_config(root / CONFIG)
    path = root / MODEL
    model = _parse(path)
    with texts(path, model):
        check_model(path, model)
    return config, model


def map_tensors(root: Path, graph: GraphProto, wanted: Mapping[str, Wanted]) -> tuple[dict[str, Array], int]:
    """The initializers by name, each as wanted, as read-only views of the mapped files; and the bytes of all files.

    Raises PackageError for one that is missing, that nothing wants, or that is another than wanted.
    """
    path = root / MODEL
    reader = TensorReader(path)
    tensors: dict[str, Array] = {}
    for tensor in graph.initializer:
        if tensor.name in tensors:
            raise damaged(path, f"tensor {quoted(tensor.name)} is there twice")
        if tensor.name not in wanted:
            raise damaged(path, f"tensor {quoted(tensor.name)} belongs to no node")
        tensors[tensor.name] = reader.view(tensor, wanted[tensor.name].part)
    for name, want in wanted.items():
        if name not in tensors:
            raise damaged(path, f"tensor {quoted(name)} of node {quoted(want.node)} is missing")
        if want.vector:
            finite(path, name, tensors[name], positive=want.positive)
    size = sum((root / name).stat().st_size for name in (CONFIG, MODEL, *TEXT_FILES))
    return tensors, size + sum(len(data) for data in reader.files.values())


@contextmanager
def texts(path: Path, model: ModelProto) -> Iterator[None]:
    """A context in which a text of the model that is no UTF-8 raises PackageError when it is read."""
    try:
        yield
    except (UnicodeDecodeError, TypeError, AttributeError) as error:
        # Protobuf decodes texts when they are read, and some versions give those that are no UTF-8 as bytes.
        if isinstance(error, UnicodeDecodeError) or _has_broken_text(model):
            raise damaged(path, "a name is no UTF-8") from error
        raise


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

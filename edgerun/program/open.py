"""Opening a model package: nothing of it reaches a kernel before all of it has been checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgerun.package.config import Config
from edgerun.package.layout import Array
from edgerun.package.problem import damaged, quoted
from edgerun.package.reader import MODEL, map_tensors, read_model, texts
from edgerun.program.build import build
from edgerun.program.ops import Program

if TYPE_CHECKING:
    from onnx import GraphProto


@dataclass(frozen=True)
class Package:
    """A model package whose every name, shape, type, size and offset has been checked.

    folder: where it is.  config: edgerun.json.  program: what its graph computes.  graph: that ONNX graph.
    bytes: size of all its files.
    """

    folder: Path
    config: Config
    program: Program = field(repr=False)
    graph: GraphProto = field(repr=False)
    bytes: int
    _tensors: Mapping[str, Array] = field(repr=False)

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
    config, model = read_model(root)
    path = root / MODEL
    with texts(path, model):
        program, wanted = build(path, model.graph, config)
        tensors, size = map_tensors(root, model.graph, wanted)
    return Package(root, config, program, model.graph, size, tensors)

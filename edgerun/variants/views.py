"""What a mapped file holds, by name, as views that are made when they are asked for.

A variant has some hundreds of arrays. As objects they would cost three hundredths of what a small file has, for each of
many variants that lie ready; as places in the file next to nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

V = TypeVar("V")


class Views(Mapping[str, V], Generic[V]):
    """``entries`` (name -> what consists of views of ``data``), of which only the numbers are kept that ``place`` gives
    and from which ``view`` makes the same again."""

    def __init__(
        self,
        data: NDArray[np.uint8],
        entries: Mapping[str, V],
        place: Callable[[NDArray[np.uint8], V], Sequence[int]],
        view: Callable[[NDArray[np.uint8], Sequence[int]], V],
    ) -> None:
        self._data, self._view = data, view
        self._index = _index(tuple(sys.intern(name) for name in entries))
        self._places = np.array([place(data, entry) for entry in entries.values()], np.int64)

    def __getitem__(self, name: str) -> V:
        return self._view(self._data, self._places[self._index[name]].tolist())

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


@lru_cache(maxsize=16)
def _index(names: tuple[str, ...]) -> dict[str, int]:
    """The number of each name; the same object for all variants of a base that change the same tensors."""
    return {name: i for i, name in enumerate(names)}


def offset(data: NDArray[np.uint8], view: NDArray[Any]) -> int:
    """Where a view begins in the data, in bytes."""
    return int(view.ctypes.data - data.ctypes.data)


def array(data: NDArray[np.uint8], at: int, dtype: np.dtype[Any], *shape: int) -> NDArray[Any]:
    """A view [*shape] of the data from byte ``at`` on."""
    return np.ndarray(shape, dtype, data, at)

"""How a kernel is declared: Numba without Python objects, exceptions or bounds checks; the result is plain IR."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import njit
from numba.core import types

INT = types.int64
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@dataclass(frozen=True)
class Export:
    """A compiled function that the object file offers under its own name, with the C calling convention."""

    name: str
    function: Any
    result: Any
    args: tuple[Any, ...]


EXPORTS: dict[str, Export] = {}


def inner(function: Callable[..., Any]) -> Any:
    """A function for other kernels only."""
    return njit(**OPTIONS)(function)


def exported(result: Any, *args: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function that Python may call through ctypes: int64, float32, float64 arguments; also usable in kernels."""

    def register(function: Callable[..., Any]) -> Any:
        compiled = inner(function)
        EXPORTS[function.__name__] = Export(function.__name__, compiled, result, args)
        return compiled

    return register


op_kernel = exported(types.void, INT, INT, INT, INT)
"""The kernel of an op: ``(op record address, run record address, thread, number of threads)``."""

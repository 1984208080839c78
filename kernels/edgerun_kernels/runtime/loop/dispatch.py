"""Which kernel runs a record: the functions that the compiled loop calls, made from the registry of ops.

Kernels are compiled to code that calls them by name, so that these functions are made as source.
"""

import linecache
from importlib import import_module
from typing import Any

from ...kernel import inner
from ...ops.weight_differences import variant_embed, variant_linear
from ...registry import Op
from .barrier import meet

_SIGNATURE = "(code, op, run, tid, n_threads):"


def _chain(name: str, calls: dict[Op, list[str]]) -> str:
    """The source of a function that calls, for each code, these kernels."""
    lines = [f"def {name}{_SIGNATURE}"]
    for op, kernels in calls.items():
        lines.append(f"    {'if' if len(lines) == 1 else 'elif'} code == {int(op)}:")
        lines += [f"        {kernel}(op, run, tid, n_threads)" for kernel in kernels]
    return "\n".join([*lines, ""])


def _made(name: str, calls: dict[Op, list[str]], kernels: dict[str, Any]) -> Any:
    source, file = _chain(name, calls), f"<{__name__}.{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace = dict(kernels)
    exec(compile(source, file, "exec"), namespace)
    return inner(namespace[name])


def _kernel(op: Op) -> Any:
    return getattr(import_module(f"edgerun_kernels.{op.entry.module}"), op.kernel)


run_op = _made("run_op", {op: [op.kernel] for op in Op}, {op.kernel: _kernel(op) for op in Op})
"""Thread ``tid``'s part of a record."""

add_variants = _made(
    "add_variants",
    {op: [*([] if op.entry.shares_features else ["meet"]), op.entry.variants] for op in Op if op.entry.variants},
    {kernel.__name__: kernel for kernel in (variant_embed, variant_linear, meet)},
)
"""What variants do behind an op that has a weight of theirs; norms have taken it already."""

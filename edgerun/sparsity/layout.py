"""How the weights of layers with one input lie when their columns are read one by one: the layers stacked, column by
column.

Of a stack with N rows, each layer's padded to 16 and all of them to the rows of a line (L: 128 of 4 bits, 64 of 8), and
G groups of 32 columns:

q  uint8 [32 G, lines, 64]       line s < N / L of a column: byte 16 a + 4 u + r is row s*L + u*16 + a*4 + r (signed, or
                                 its low nibble; the high one is the row 64 after it). An even number of lines is padded
                                 with one more, since columns a power of two apart would share the places of a cache.
d  float16 [G, N]                scales
m  float16 [G, N]                minima, of q4m only

Of ternary layers q lies as in ``package.layout``'s ternary_columns, with L = 256; their scales, one a layer, are the
package's. Those that the package has column by column are read from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.package import layout
from edgerun.package.layout import COLUMN_ROWS, GROUP, ROWS, Unpacked

Array = NDArray[Any]
LINE_ROWS = {
    "q4": 128,
    "q4m": 128,
    "q8": 64,
    "ternary": COLUMN_ROWS,
    "ternary_triples": COLUMN_ROWS,
    "ternary_columns": COLUMN_ROWS,
}
"""Weight rows in a line of a column, of the formats that can lie so."""


class Part(NamedTuple):
    """What an array of a stack must be."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def stack_rows(fmt: str, rows: Sequence[int]) -> int:
    """Rows of a stack of layers with so many each, padded."""
    total = sum(-(-n // ROWS) * ROWS for n in rows)
    return -(-total // LINE_ROWS[fmt]) * LINE_ROWS[fmt]


def parts(fmt: str, rows: Sequence[int], k: int) -> dict[str, Part]:
    """The arrays of a stack: "q", "d", "m" -> Part."""
    n, groups = stack_rows(fmt, rows), -(-k // GROUP)
    if fmt == "ternary_columns":
        return {}
    if fmt in ("ternary", "ternary_triples"):
        return {"q": Part(np.dtype("u1"), (groups * GROUP, n // COLUMN_ROWS, 64))}
    lines = n // LINE_ROWS[fmt] | 1
    scales = Part(np.dtype("<f2"), (groups, n))
    found = {"q": Part(np.dtype("u1"), (groups * GROUP, lines, 64)), "d": scales}
    return found | ({"m": scales} if fmt == "q4m" else {})


def pack(fmt: str, layers: Sequence[Unpacked], into: dict[str, Array]) -> None:
    """Writes layers with one input, as ``package.layout.unpack`` gives them, into the arrays of their ``parts``."""
    if fmt in ("ternary", "ternary_triples"):
        _pack_ternary(layers, into["q"])
        return
    line_rows, zero = LINE_ROWS[fmt], 8 if fmt == "q4" else 0
    q, lines = into["q"], into["d"].shape[1] // LINE_ROWS[fmt]
    q[:, lines:] = 0
    codes = np.full((lines * line_rows, len(q)), zero, np.uint8)
    for name in ("d", "m"):
        if name in into:
            into[name][...] = 0
    start = 0
    for layer in layers:
        n, k = layer.values.shape
        codes[start : start + n, :k] = layer.values.view(np.uint8)
        for name, scales in (("d", layer.d), ("m", layer.m)):
            if name in into:
                assert scales is not None
                into[name][:, start : start + n] = scales.T
        start += -(-n // ROWS) * ROWS
    for line in range(lines):  # one at a time: temporaries stay small
        rows = codes[line * line_rows : (line + 1) * line_rows]
        if fmt != "q8":
            rows = rows[:64] | rows[64:] << 4
        q[:, line] = rows.reshape(4, 4, 4, -1).swapaxes(0, 1).reshape(64, -1).T


def _pack_ternary(layers: Sequence[Unpacked], into: Array) -> None:
    codes = [np.pad(layer.values, ((0, -len(layer.values) % ROWS), (0, 0)), constant_values=1) for layer in layers]
    packed = layout.pack("ternary_columns", np.concatenate(codes), np.ones(1, np.float32))
    into[...] = packed["q"].reshape(into.shape)

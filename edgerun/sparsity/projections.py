"""The projections of a tape: its linear layers, those that share a quantised input together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.program.tape import Tape
from edgerun.sparsity.layout import LINE_ROWS, parts, stack_rows
from edgerun_kernels.record import Field, Flag, Op

Kind = Literal["qkv", "attention_output", "gate_up", "down"]
KINDS: tuple[Kind, ...] = ("qkv", "attention_output", "gate_up", "down")
TERNARY = ("ternary", "ternary_triples", "ternary_columns")
_FORMATS = {
    Op.LINEAR_Q4: "q4",
    Op.LINEAR_Q8: "q8",
    **dict(zip((Op.LINEAR_TERNARY, Op.LINEAR_TERNARY_TRIPLES, Op.LINEAR_TERNARY_COLUMNS), TERNARY, strict=True)),
}
_KINDS = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "attention_output", "down_proj": "down"}


@dataclass(frozen=True)
class Projection:
    """Linear layers of one weight format that multiply the same quantised input.

    name: its kind behind what its layers' names share.  fmt: "q4", "q4m", "q8" or one of TERNARY.  quantize: the
    record that makes the input.  records: of the layers, in order.  rows, k: their output features, and the input
    features.
    """

    name: str
    kind: Kind
    fmt: str
    quantize: int
    records: tuple[int, ...]
    rows: tuple[int, ...]
    k: int

    @property
    def stack(self) -> int:
        """Rows of the layers together, padded as they lie (see ``layout``)."""
        return stack_rows(self.fmt, self.rows)

    @property
    def run_bytes(self) -> int:
        """What a column takes that is read at once."""
        return self.stack // LINE_ROWS[self.fmt] * 64

    @property
    def weight_bytes(self) -> int:
        """What its columns and scales take."""
        arrays = parts(self.fmt, self.rows, self.k)
        return self.run_bytes * self.k + sum(
            2 * part.shape[0] * part.shape[1] for n, part in arrays.items() if n != "q"
        )


def projections(tape: Tape) -> list[Projection]:
    """Those whose columns can be skipped, in the order in which they run: ternary layers, and those of 4 or 8 bits over
    quantised activations, but for the output head."""
    made: dict[int, int] = {}  # where a quantised input lies -> the record that wrote it last
    found: dict[tuple[int, str], list[int]] = {}
    for i, op in enumerate(tape.ops):
        code = op[Field.CODE]
        if code in (Op.QUANTIZE, Op.QUANTIZE_ROWS):
            made[int(op[Field.Y])] = i
        elif code in _FORMATS and not op[Field.FLAGS] & Flag.LOGITS:
            found.setdefault((made[int(op[Field.X])], _format(op)), []).append(i)
    return [_projection(tape, quantize, fmt, tuple(records)) for (quantize, fmt), records in found.items()]


def _projection(tape: Tape, quantize: int, fmt: str, records: tuple[int, ...]) -> Projection:
    first = tape.names[records[0]]
    kind = _KINDS.get(first.rpartition(".")[2], "gate_up")
    layer = re.match(r"(?:layers\.\d+)?", first)
    assert layer is not None
    name = ".".join(filter(None, (layer[0], kind, "" if fmt == _first_format(tape, quantize) else fmt)))
    rows = tuple(int(tape.ops[i][Field.N]) for i in records)
    return Projection(name, kind, fmt, quantize, records, rows, int(tape.ops[records[0]][Field.K]))  # type: ignore[arg-type]


def _format(op: NDArray[np.int64]) -> str:
    fmt = _FORMATS[Op(op[Field.CODE])]
    return "q4m" if fmt == "q4" and op[Field.M] else fmt


def _first_format(tape: Tape, quantize: int) -> str:
    """Of the layers of an input: those of others have their format in their name."""
    x = tape.ops[quantize][Field.Y]
    for op in tape.ops[quantize + 1 :]:
        if op[Field.CODE] in _FORMATS and op[Field.X] == x:
            return _format(op)
    return ""

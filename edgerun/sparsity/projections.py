"""The projections of a tape: its linear layers, those that share a quantised input together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from edgerun.program.encode import ALWAYS
from edgerun.program.ops import Attention, Gate, Linear, Norm, Op
from edgerun.program.tape import Encoded, Tape
from edgerun.sparsity.layout import LINE_ROWS, parts, stack_rows
from edgerun_kernels.layouts import Head

Kind = Literal["qkv", "attention_output", "gate_up", "down"]
KINDS: tuple[Kind, ...] = ("qkv", "attention_output", "gate_up", "down")
TERNARY = ("ternary", "ternary_triples", "ternary_columns")
FORMATS = ("q4", "q4m", "q8", *TERNARY)
"""Formats of weights whose columns can be skipped."""


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
    """The projections whose columns can be skipped, in the order in which they run: ternary layers, and those of 4 or 8
    bits over quantised activations, but for the output head.

    What columns come to lies in the same room for all inputs. So an input is left out whose layers threads may still
    run while others begin with those of another; no known family has such layers.
    """
    found: dict[tuple[int, str], list[Encoded]] = {}
    for encoded in tape.encoded:
        op = encoded.op
        if isinstance(op, Linear) and not op.head and op.format in FORMATS and encoded.quantised is not None:
            found.setdefault((encoded.quantised, op.format), []).append(encoded)
    shared = _overlapping(tape, found)
    first: dict[int, str] = {}  # format of an input's layers: those of others have theirs in the name
    roles = _Roles(tape)
    made = []
    for (quantise, fmt), layers in found.items():
        other = "" if first.setdefault(quantise, fmt) == fmt else fmt
        if quantise not in shared:
            made.append(_projection(roles, quantise, fmt, other, layers))
    return made


def _projection(roles: _Roles, quantise: int, fmt: str, other: str, layers: Sequence[Encoded]) -> Projection:
    ops = [encoded.op for encoded in layers if isinstance(encoded.op, Linear)]
    kind = roles.kind(ops[0])
    layer = re.match(r"(?:layers\.\d+)?", ops[0].name)
    assert layer is not None
    name = ".".join(filter(None, (layer[0], kind, other)))
    records, rows = tuple(encoded.records[0] for encoded in layers), tuple(op.weights.n for op in ops)
    return Projection(name, kind, fmt, quantise, records, rows, ops[0].weights.k)


class _Roles:
    """What linear layers are for, by what they are given and who reads what they give."""

    def __init__(self, tape: Tape) -> None:
        self._giver: dict[str, Op] = {encoded.op.y: encoded.op for encoded in tape.encoded}
        self._attended: set[str] = set()
        self._gated: set[str] = set()
        for op in self._giver.values():
            if isinstance(op, Attention):
                self._attended |= {op.q, op.k, op.v}
            elif isinstance(op, Gate):
                self._gated |= {op.gate, op.up}

    def kind(self, op: Linear) -> Kind:
        """What a layer is to its block; "down" where it is none of a known one."""
        if op.y in self._attended:
            return "qkv"
        if op.y in self._gated:
            return "gate_up"
        giver = self._giver[op.x]
        while isinstance(giver, Norm):
            giver = self._giver[giver.x]
        return "attention_output" if isinstance(giver, Attention) else "down"


def _overlapping(tape: Tape, found: Mapping[tuple[int, str], Sequence[Encoded]]) -> set[int]:
    """The records that quantise inputs behind whose layers threads do not meet before the next input's begin."""
    ends: dict[int, int] = {}
    for (quantise, _), layers in found.items():
        ends[quantise] = max(ends.get(quantise, 0), layers[-1].records[-1])
    order = sorted(ends)
    shared: set[int] = set()
    for one, following in pairwise(order):
        if not (tape.ops[ends[one] : following, Head.BARRIER] == ALWAYS).any():
            shared |= {one, following}
    return shared

"""Encodes a program, op by op, as records (``edgerun_kernels.layouts``).

Who must wait for whom is decided here. Linear layers split their output features between threads, attention its heads
and positions; norms and quantisation are done by every thread for itself when one row runs (a copy each), and split by
rows otherwise. So a decode step has five barriers a layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.program.arena import Arena
from edgerun.program.codes import ATTENTION, COMPACT, EMBED, GATE, LINEAR, LINEAR_FLOAT, LINEAR_TERNARY, TILE_BYTES
from edgerun.program.ops import Attention, Embed, Gate, Linear, Matrix, Norm, Program, Vector, reads
from edgerun.program.tape import Encoded, Site, SiteKind, Tape
from edgerun_kernels.layouts import Head
from edgerun_kernels.record import (
    GROUP,
    ROWS,
    TILE_ROWS,
    Flag,
    LayerState,
    attention_scratch_bytes,
    columns_scratch_bytes,
    kv_head_bytes,
    partials_bytes,
    triples_scratch_bytes,
)
from edgerun_kernels.registry import Op, put, record

Compute = Literal["mixed", "int16", "int8", "float32"]
CacheType = Literal["f16", "q8", "f32"]

THRESHOLDS = {"mixed": (8.0, 4.0), "int16": (0.0, 0.0), "int8": (np.inf, np.inf)}
"""Groups of 32 activations whose largest is above this many times the row's rms are 16 bits wide, others 8; the second
number is for the output head, which has few rows at prefill and whose errors nothing evens out."""
ALWAYS, SEVERAL_ROWS, WHERE_SKIPPED = 1, 2, 3
SKIPPABLE = ("q4", "q4m", "q8", *LINEAR_TERNARY)
"""Formats whose columns a session may leave unread."""
_WEIGHT_FIELDS = {"q": "W", "w": "W", "d": "D", "m": "M", "s": "M"}


def _pad(n: int, to: int) -> int:
    return -(-n // to) * to


def row_bytes(width: int) -> int:
    """Bytes of a float32 row of ``width`` features, padded to whole groups."""
    return _pad(width, GROUP) * 4


@dataclass
class _Value:
    """A value of the program, where it lies in the arena: rows of ``width`` float32."""

    offset: int
    width: int
    private: bool = False
    """Whether every thread has its own copy when one row runs."""
    by_features: bool = False
    """Whether a thread wrote the blocks of 16 features that it would take of it again: those it may use at once."""
    joined: bool = False
    """Whether it was written by a kernel behind which even those wait that take the features that they wrote."""
    written: int = 0
    read: int = -1
    """How many barriers there were before it was written, and before it was read last."""
    quantised: dict[Op, tuple[int, int]] = field(default_factory=dict)
    """Its int8 forms, by the op that makes them: arena offset, and index of the record."""
    projections: dict[str, int] = field(default_factory=dict)
    """By weight format, which projection the layers that multiply its int8 form are."""

    @property
    def stride(self) -> int:
        return row_bytes(self.width)


def encode(
    program: Program,
    tensor: Callable[[str], NDArray[Any]],
    *,
    n_threads: int,
    compute: Compute,
    cache: CacheType,
    max_rows: int,
) -> Tape:
    """The tape of a program for teams of ``n_threads`` and runs of up to ``max_rows`` tokens.

    tensor: gives the package's tensors by name, as ``Package.tensor``.
    compute: "mixed", "int16" and "int8" quantise activations before q4 and q8 layers (see THRESHOLDS), "float32" does
    not.
    cache: element type of keys and values.
    """
    return _Encoding(program, tensor, n_threads, compute, cache, max_rows).tape()


class _Encoding:
    def __init__(
        self,
        program: Program,
        tensor: Callable[[str], NDArray[Any]],
        n_threads: int,
        compute: Compute,
        cache: CacheType,
        max_rows: int,
    ) -> None:
        self.program, self.tensor = program, tensor
        self.compute, self.cache = compute, cache
        self.n_threads, self.max_rows = n_threads, max_rows
        self.arena = Arena(max_rows, n_threads)
        self.barriers = 0
        self.records: list[NDArray[np.int64]] = []
        self.names: list[str] = []
        self.arrays: list[NDArray[Any]] = []
        self.sites: list[Site] = []
        self.encoded: list[Encoded] = []
        self.values: dict[str, _Value] = {}
        self.uses = Counter(name for op in program.ops for name in reads(op))
        self.formats: dict[str, dict[str, None]] = {}  # of the layers that multiply a value, in order
        for op in program.ops:
            if isinstance(op, Linear):
                self.formats.setdefault(op.x, {})[op.format] = None
        self.holders: Counter[int] = Counter()  # arena offset -> values that lie there
        self.aside: tuple[int, int] | None = None
        """A linear layer's own output, offset and width, which stays empty because the layer adds to a residual."""
        self.stack_rows = [0]
        """Of each projection, the rows of its layers so far; number 0 is none."""
        self.linear_scratch: dict[int, int] = {}
        self.attention_scratch: tuple[int, int, int] | None = None

    def tape(self) -> Tape:
        for op in self.program.ops:
            if isinstance(op, Embed):
                self._embed(op)
            elif isinstance(op, Norm):
                self._norm(op)
            elif isinstance(op, Linear):
                self._linear(op)
            elif isinstance(op, Attention):
                self._attention(op)
            else:
                self._gate(op)
            for name in reads(op):
                self._release(name)
            if self.aside is not None:
                self.arena.give(*self.aside)
                self.aside = None
        program = self.program
        return Tape(
            ops=np.ascontiguousarray(np.stack(self.records)),
            names=tuple(self.names),
            arena_bytes=self.arena.size,
            max_rows=self.max_rows,
            page_bytes=program.n_layers * program.n_kv_heads * kv_head_bytes(self.cache, program.head_dim),
            vocab_size=program.vocab_size,
            logits_stride=_pad(program.vocab_size, ROWS),
            inv_freq=np.array(self.tensor(program.rotary.name), np.float32),
            sites=tuple(self.sites),
            encoded=tuple(self.encoded),
            arrays=self.arrays,
        )

    # --- records, barriers, memory -----------------------------------------------------------------------------------

    def _emit(self, name: str, code: Op, **fields: int) -> int:
        self.records.append(record(code, **fields))
        self.names.append(name)
        return len(self.records) - 1

    def _wait(self, when: int = ALWAYS) -> None:
        """All threads meet after the op emitted last (``SEVERAL_ROWS``: unless every thread did all of it)."""
        last = self.records[-1]
        if last[Head.BARRIER] != ALWAYS:
            last[Head.BARRIER] = when
        if when == ALWAYS:
            self.barriers += 1
            self.arena.barrier()

    def _value(self, name: str) -> _Value:
        """A value that an op reads."""
        value = self.values[name]
        value.read = self.barriers
        return value

    def _define(self, name: str, value: _Value) -> None:
        value.written = self.barriers
        self.holders[value.offset] += 1
        self.values[name] = value

    def _may_replace(self, value: _Value) -> bool:
        """Whether every thread is done with what it wrote and read of a value, so that others may write there."""
        return value.written < self.barriers and value.read < self.barriers

    def _release(self, name: str) -> None:
        self.uses[name] -= 1
        if self.uses[name] > 0:
            return
        value = self.values.pop(name)
        self.holders[value.offset] -= 1
        if not self.holders[value.offset]:  # a residual lives on in its sum
            self.arena.give(value.offset, value.width)
        for code, (offset, _) in value.quantised.items():
            self.arena.give(offset, value.width, TILE_BYTES[code](value.width, TILE_ROWS))

    def _address(self, array: NDArray[Any]) -> int:
        self.arrays.append(array)
        return int(array.ctypes.data)

    def _padded(self, vector: Vector, to: int) -> NDArray[np.float32]:
        """A float32 vector whose length is padded with zeros to a multiple of ``to``."""
        values = np.asarray(self.tensor(vector.name), np.float32).ravel()
        if len(values) % to:
            values = np.pad(values, (0, -len(values) % to))
        return np.ascontiguousarray(values)

    def _site(
        self, name: str, kind: SiteKind, records: tuple[int, ...], vector: NDArray[np.float32] | None = None
    ) -> None:
        """Notes where a weight is used, and tells the record behind which variants act: of a layer's, the last."""
        self.sites.append(Site(name, kind, records, vector))
        if kind != "bias":  # which is a part of its layer's site
            last = self.records[records[-1]]
            put(last, SITE=len(self.sites) - 1, FLAGS=int(last[Head.FLAGS]) | Flag.SITE)

    def _weights(self, matrix: Matrix) -> dict[str, int]:
        fields = {"N": matrix.n, "K": matrix.k}
        for part, name in matrix.tensors.items():
            fields[_WEIGHT_FIELDS[part]] = self._address(self.tensor(name))
        return fields

    @staticmethod
    def _float_bits(value: float) -> int:
        return int(np.float64(np.float32(value)).view(np.int64))

    @staticmethod
    def _rows(x: _Value, y: int, y_stride: int) -> dict[str, int]:
        """Fields of an op that every thread does for itself when one row runs."""
        return {
            "X": x.offset,
            "X_STRIDE": x.stride,
            "X_PRIVATE": x.stride if x.private else 0,
            "Y": y,
            "Y_STRIDE": y_stride,
            "Y_PRIVATE": y_stride,
        }

    # --- one method per op --------------------------------------------------------------------------------------------

    def _embed(self, op: Embed) -> None:
        width = op.weights.k
        value = _Value(self.arena.take(width, row_bytes(width)), width)
        code = EMBED[op.weights.format]
        at = self._emit(op.name, code, Y=value.offset, Y_STRIDE=value.stride, **self._weights(op.weights))
        self._site(op.weights.name, "embedding", (at,))
        self.encoded.append(Encoded(op, (at,)))
        self._define(op.y, value)

    def _norm(self, op: Norm) -> None:
        x = self._value(op.x)
        final = op.y == self.program.head.x  # only rows whose logits are wanted pass it, and the head
        if not x.private:  # else every thread has it, or the rows that it normalises
            self._wait()
        elif final:  # of several rows a thread takes others of the last ones than of all
            self._wait(SEVERAL_ROWS)
        x.read = self.barriers
        y = _Value(self.arena.take(x.width, x.stride), x.width, private=True)
        weight = self._padded(op.weight, GROUP)
        at = self._emit(
            op.name,
            Op.RMS_NORM,
            **self._rows(x, y.offset, y.stride),
            W=self._address(weight),
            K=x.width,
            EPSILON=self._float_bits(op.epsilon),
            FLAGS=Flag.LAST_ROWS | Flag.OUT_ROWS if final else 0,
        )
        self._site(op.weight.name, "norm", (at,), weight)
        self.encoded.append(Encoded(op, (at,)))
        self._define(op.y, y)

    def _quantised(self, name: str, code: Op, flags: int) -> dict[str, int]:
        """An int8 form of a value, made where it is first wanted."""
        x = self.values[name]
        tile, row = TILE_BYTES[code](x.width, TILE_ROWS), TILE_BYTES[code](x.width, 1)
        if code not in x.quantised:
            if not x.private:
                self._wait()  # other threads wrote parts of the row
            offset = self.arena.take_tiles(x.width, tile, row)
            fields = self._rows(x, offset, tile) | {"Y_PRIVATE": row}
            if code == Op.QUANTIZE:
                limit = THRESHOLDS[self.compute][1 if flags & Flag.OUT_ROWS else 0]
                fields["THRESHOLD"] = int(np.float64(limit).view(np.int64))
            x.quantised[code] = offset, self._emit(f"{name}.quantised", code, **fields, K=x.width, FLAGS=flags)
            self._wait(SEVERAL_ROWS)
            if not flags & Flag.OUT_ROWS:
                self._hook(name, code, {"X": offset, "X_STRIDE": tile, "X_PRIVATE": row, "K": x.width})
        return {"X": x.quantised[code][0], "X_STRIDE": tile, "X_PRIVATE": row}

    def _hook(self, name: str, code: Op, fields: dict[str, int]) -> None:
        """Behind the op that quantises a value: for each format of the layers that multiply it, where a session's
        sparsity looks."""
        projections = self.values[name].projections
        for fmt in self.formats[name]:
            if fmt in SKIPPABLE and (fmt in LINEAR_TERNARY) == (code == Op.QUANTIZE_ROWS):
                projections[fmt] = len(self.stack_rows)
                self.stack_rows.append(0)
                self._emit(f"{name}.{fmt}.columns", Op.SKIP_COLUMNS, **fields, PROJECTION=projections[fmt])
                self._wait(WHERE_SKIPPED)

    def _linear(self, op: Linear) -> None:
        x, fmt = self.values[op.x], op.format
        flags: int = Flag.OUT_ROWS if op.head else 0
        quantise: Op | None = None
        if fmt in LINEAR_TERNARY:  # its activations are int8 by definition
            code, quantise = LINEAR_TERNARY[fmt], Op.QUANTIZE_ROWS
        elif self.compute != "float32" and fmt != "f32":
            code, quantise = LINEAR[fmt], Op.QUANTIZE
        else:
            code = LINEAR_FLOAT[fmt]
        if quantise is not None:
            source = self._quantised(op.x, quantise, flags)
        else:
            self._wait(SEVERAL_ROWS if x.private else ALWAYS)
            source = {"X": x.offset, "X_STRIDE": x.stride, "X_PRIVATE": x.stride if x.private else 0}
        x.read = self.barriers  # also where it is quantised: a variant's delta multiplies the float32
        fields = source | self._weights(op.weights) | {"FLAGS": flags}
        if fmt in x.projections:
            number = x.projections[fmt]
            fields |= {"PROJECTION": number, "START": self.stack_rows[number]}
            self.stack_rows[number] += _pad(op.weights.n, ROWS)
        if op.bias is not None:
            bias = self._padded(op.bias, ROWS)
            fields["BIAS"] = self._address(bias)
        own = _Value(0, op.weights.n, by_features=True, joined=not code.entry.shares_features)
        if op.head:
            fields |= {"Y_STRIDE": _pad(own.width, ROWS) * 4, "FLAGS": flags | Flag.LOGITS}
        else:
            own.offset = self.arena.take(own.width, own.stride)
            fields |= {"Y": own.offset, "Y_STRIDE": own.stride}
        y = own
        if op.residual is not None:
            residual = self.values[op.residual]
            if not self._may_replace(residual):
                self._wait()
            self.aside = own.offset, own.width
            y = _Value(residual.offset, residual.width, by_features=True, joined=own.joined)
            fields |= {"Y": y.offset, "FLAGS": flags | Flag.ACCUMULATE}
        records = self._multiply(op.name, code, fields)
        self._site(op.weights.name, "linear", records)
        private = x.stride if x.private else 0
        put(self.records[records[-1]], INPUT=x.offset, INPUT_STRIDE=x.stride, INPUT_PRIVATE=private)
        if op.bias is not None:
            self._site(op.bias.name, "bias", records, bias)
        self.encoded.append(Encoded(op, records, None if quantise is None else x.quantised[quantise][1]))
        if not op.head:
            self._define(op.y, y)

    def _multiply(self, name: str, code: Op, fields: dict[str, int]) -> tuple[int, ...]:
        """The records of a linear layer: one, or two where threads share out its columns and then join their sums."""
        if code == Op.LINEAR_TERNARY_TRIPLES:
            fields |= self._linear_scratch(triples_scratch_bytes(fields["N"], fields["K"]))
        if code != Op.LINEAR_TERNARY_COLUMNS:
            return (self._emit(name, code, **fields),)
        fields |= self._linear_scratch(columns_scratch_bytes(fields["N"], fields["K"], self.max_rows))
        first = self._emit(name, code, **fields)
        self._wait()
        second = self._emit(f"{name}.gather", Op.GATHER_COLUMNS, **fields)
        self._wait()  # of one row and of several, threads write other parts than those of other layers
        return first, second

    def _linear_scratch(self, n_bytes: int) -> dict[str, int]:
        """Room for every thread's own use; layers of one size share it."""
        private = _pad(n_bytes, 64)
        if private not in self.linear_scratch:
            self.linear_scratch[private] = self.arena.scratch(private * self.n_threads)
        return {"SCRATCH": self.linear_scratch[private], "SCRATCH_PRIVATE": private}

    def _gate(self, op: Gate) -> None:
        gate, up = self.values[op.gate], self.values[op.up]
        foreign = any(v.joined or (not v.by_features and v.written == self.barriers) for v in (gate, up))
        if foreign or gate.read == self.barriers:
            self._wait()  # else a thread takes what it wrote itself
        fields = {"X": gate.offset, "UP": up.offset, "X_STRIDE": gate.stride, "N": gate.width}
        at = self._emit(op.name, GATE[op.activation], **fields)
        gate.read = up.read = self.barriers
        self.encoded.append(Encoded(op, (at,)))
        self._define(op.y, _Value(gate.offset, gate.width, by_features=True))

    def _head_norm(self, kind: Literal["q_norm", "k_norm"], vector: Vector, at: int) -> dict[str, int]:
        """Fields of attention, which looks itself for what variants make of a norm; ``at``: its record."""
        weight = self._padded(vector, 1)
        self.sites.append(Site(vector.name, kind, (at,), weight))
        norm, site = ("Q_NORM", "Q_SITE") if kind == "q_norm" else ("K_NORM", "K_SITE")
        return {norm: self._address(weight), site: len(self.sites) - 1}

    def _attention(self, op: Attention) -> None:
        head_bytes = kv_head_bytes(self.cache, op.head_dim)
        if self.attention_scratch is None:
            private = _pad(attention_scratch_bytes(op.head_dim), 64)
            partials = self.arena.scratch(partials_bytes(op.n_heads, op.head_dim, self.max_rows))
            self.attention_scratch = (self.arena.scratch(private * self.n_threads), private, partials)
        scratch, private, partials = self.attention_scratch
        self._wait()
        q, k, v = (self._value(name) for name in (op.q, op.k, op.v))
        y = _Value(self.arena.take(q.width, q.stride), q.width, private=True)
        fields = {
            "Y": y.offset,
            "Y_STRIDE": y.stride,
            "Y_PRIVATE": y.stride,
            "Q": q.offset,
            "KEY": k.offset,
            "VALUE": v.offset,
            "Q_STRIDE": q.stride,
            "KV_STRIDE": k.stride,
            "N_HEADS": op.n_heads,
            "N_KV_HEADS": op.n_kv_heads,
            "HEAD_DIM": op.head_dim,
            "KV_HEAD_BYTES": head_bytes,
            "LAYER": op.layer * op.n_kv_heads * head_bytes,
            "STATE": 8 * LayerState.COUNT * op.layer,
            "SCALE": self._float_bits(op.scale),
            "PARTIALS": partials,
            "SCRATCH": scratch,
            "SCRATCH_PRIVATE": private,
        }
        if op.epsilon is not None:
            fields["EPSILON"] = self._float_bits(op.epsilon)
        if op.q_norm is not None:
            fields |= self._head_norm("q_norm", op.q_norm, len(self.records) + 1)
        if op.k_norm is not None:
            fields |= self._head_norm("k_norm", op.k_norm, len(self.records) + 1)
        runs = self._emit(f"{op.name}.runs", COMPACT[self.cache], **fields)
        attend = self._emit(op.name, ATTENTION[self.cache], **fields)
        self._wait()
        gather = self._emit(f"{op.name}.gather", Op.GATHER_ATTENTION, **fields)
        select = self._emit(f"{op.name}.select", Op.SELECT_PAGES, **fields)
        self.encoded.append(Encoded(op, (runs, attend, gather, select)))
        self._define(op.y, y)

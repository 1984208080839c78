"""Lowers a validated ONNX graph, node by node, to the op records of ``edgerun_kernels.record``.

Who must wait for whom is decided here. Linear layers split their output features between threads, attention its heads
and positions; norms and quantisation are done by every thread for itself when one row runs (a copy each), and split by
rows otherwise. So a decode step has five barriers a layer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import PackageError
from edgerun.lowering.tape import Arena, Site, Tape
from edgerun.package.operators import ATTENTIONS, EMBEDS, LINEARS, OPERATORS
from edgerun_kernels.record import (
    GROUP,
    MAX_CHUNKS,
    ROWS,
    TILE_ROWS,
    Field,
    Flag,
    Op,
    activation_bytes,
    attention_scratch_bytes,
    columns_scratch_bytes,
    kv_head_bytes,
    row_activation_bytes,
    triples_scratch_bytes,
)

if TYPE_CHECKING:
    from edgerun.package.reader import Package

Compute = Literal["mixed", "int16", "int8", "float32"]
CacheType = Literal["f16", "q8", "f32"]

THRESHOLDS = {"mixed": (8.0, 4.0), "int16": (0.0, 0.0), "int8": (np.inf, np.inf)}
"""Groups of 32 activations whose largest is above this many times the row's rms are 16 bits wide, others 8; the second
number is for the output head, which has few rows at prefill and whose errors nothing evens out."""
ALWAYS, SEVERAL_ROWS = 1, 2
EMBED = {"q4": Op.EMBED_Q4, "q4m": Op.EMBED_Q4, "q8": Op.EMBED_Q8, "q6k": Op.EMBED_Q6K, "f32": Op.EMBED_F32}
LINEAR = {"q4": Op.LINEAR_Q4, "q4m": Op.LINEAR_Q4, "q8": Op.LINEAR_Q8, "q6k": Op.LINEAR_Q6K, "f32": Op.LINEAR_F32}
LINEAR_FLOAT = {
    "q4": Op.LINEAR_Q4_FLOAT,
    "q4m": Op.LINEAR_Q4_FLOAT,
    "q8": Op.LINEAR_Q8_FLOAT,
    "q6k": Op.LINEAR_Q6K_FLOAT,
    "f32": Op.LINEAR_F32,
}
LINEAR_TERNARY = {
    "ternary": Op.LINEAR_TERNARY,
    "ternary_columns": Op.LINEAR_TERNARY_COLUMNS,
    "ternary_triples": Op.LINEAR_TERNARY_TRIPLES,
}
GATE = {"SwiGLU": Op.SWIGLU, "SquaredReLU": Op.SQUARED_RELU}
TILE_BYTES = {Op.QUANTIZE: activation_bytes, Op.QUANTIZE_ROWS: row_activation_bytes}
ATTENTION = {"f16": Op.ATTENTION_F16, "q8": Op.ATTENTION_Q8, "f32": Op.ATTENTION_F32}


def _pad(n: int, to: int) -> int:
    return -(-n // to) * to


def row_bytes(width: int) -> int:
    """A float32 row of ``width`` features, padded to whole groups."""
    return _pad(width, GROUP) * 4


@dataclass
class Value:
    """A tensor of the graph that lies in the arena: rows of ``width`` float32."""

    offset: int
    width: int
    private: bool = False
    """Whether every thread has its own copy when one row runs."""
    quantised: dict[Op, int] = field(default_factory=dict)
    """Arena offsets of its int8 forms, by the op that made them."""
    records: tuple[int, ...] = ()
    """The op records of the linear layer that wrote it, if one did."""

    @property
    def stride(self) -> int:
        return row_bytes(self.width)


def lower(package: Package, *, n_threads: int, compute: Compute, cache: CacheType, max_rows: int) -> Tape:
    """The tape of a package for teams of ``n_threads`` and runs of up to ``max_rows`` tokens.

    compute: "mixed", "int16" and "int8" quantise activations before q4 and q8 layers (see THRESHOLDS), "float32" does
    not.
    cache: element type of keys and values. Raises PackageError for a graph that is no decoder of the known form.
    """
    return _Lowering(package, n_threads, compute, cache, max_rows).tape()


class _Lowering:
    def __init__(self, package: Package, n_threads: int, compute: Compute, cache: CacheType, max_rows: int) -> None:
        self.package = package
        self.compute = compute
        self.cache = cache
        self.max_rows = max_rows
        self.n_threads = n_threads
        self.arena = Arena(max_rows, n_threads)
        self.records: list[NDArray[np.int64]] = []
        self.names: list[str] = []
        self.arrays: list[NDArray[Any]] = []
        self.sites: list[Site] = []
        self.values: dict[str, Value] = {}
        self.inv_freq: NDArray[np.float32] | None = None
        self.n_layers = 0
        self.layer_bytes = 0
        self.linear_scratch: dict[int, int] = {}
        self.attention_scratch: tuple[int, int, int] | None = None
        nodes = package.graph.node
        self.uses = Counter(name for node in nodes for name in node.input)
        producer = {name: node for node in nodes for name in node.output}
        # Only rows whose logits are wanted pass the final norm and the head.
        norm = producer["logits"].input[0]
        self.final = {"logits", norm}
        if norm not in producer or producer[norm].op_type != "RMSNormalization":
            raise self._unsupported(producer["logits"], "its input must be the final RMSNormalization")

    def tape(self) -> Tape:
        for node in self.package.graph.node:
            handler = getattr(self, f"_{node.op_type.lower()}", None)
            if node.op_type in EMBEDS:
                handler = self._embed
            elif node.op_type in LINEARS:
                handler = self._linear
            elif node.op_type in GATE:
                handler = self._gate
            elif node.op_type in ATTENTIONS:
                handler = self._attention
            if handler is None:
                raise self._unsupported(node, "an unknown operator")
            handler(node)
            for name in node.input:
                self._release(name)
        vocab_size = self.package.config.vocab_size
        assert self.inv_freq is not None
        return Tape(
            ops=np.ascontiguousarray(np.stack(self.records)),
            names=tuple(self.names),
            arena_bytes=self.arena.size,
            max_rows=self.max_rows,
            page_bytes=self.n_layers * self.layer_bytes,
            vocab_size=vocab_size,
            logits_stride=_pad(vocab_size, ROWS),
            inv_freq=self.inv_freq,
            sites=tuple(self.sites),
            arrays=self.arrays,
        )

    # --- records, barriers, memory -----------------------------------------------------------------------------------

    def _emit(self, name: str, code: Op, **fields: int) -> int:
        record = np.zeros(Field.COUNT, np.int64)
        record[Field.CODE] = code
        for key, value in fields.items():
            record[Field[key]] = value
        self.records.append(record)
        self.names.append(name)
        return len(self.records) - 1

    def _wait(self, when: int = ALWAYS) -> None:
        """All threads meet after the op emitted last (``SEVERAL_ROWS``: unless every thread did all of it)."""
        record = self.records[-1]
        if record[Field.BARRIER] != ALWAYS:
            record[Field.BARRIER] = when
        if when == ALWAYS:
            self.arena.barrier()

    def _release(self, name: str) -> None:
        self.uses[name] -= 1
        value = self.values.get(name)
        if value is None or self.uses[name] > 0:
            return
        del self.values[name]
        if all(other.offset != value.offset for other in self.values.values()):  # a residual lives on in its sum
            self.arena.give(value.offset, value.width)
        for code, offset in value.quantised.items():
            self.arena.give(offset, value.width, TILE_BYTES[code](value.width, TILE_ROWS))

    def _address(self, array: NDArray[Any]) -> int:
        self.arrays.append(array)
        return int(array.ctypes.data)

    def _padded(self, name: str, to: int) -> NDArray[np.float32]:
        """A float32 vector whose length is padded with zeros to a multiple of ``to``."""
        vector = np.asarray(self.package.tensor(name), np.float32).ravel()
        if len(vector) % to:
            vector = np.pad(vector, (0, -len(vector) % to))
        return np.ascontiguousarray(vector)

    def _matrix_site(self, node: Any, records: tuple[int, ...], x: Value | None = None) -> None:
        name = node.input[1].rpartition(".")[0]
        if x is None:
            self.sites.append(Site(name, "embedding", records))
        else:
            place = (x.offset, x.stride, x.stride if x.private else 0)
            self.sites.append(Site(name, "linear", records, place))

    def _weights(self, node: Any) -> dict[str, int]:
        spec = OPERATORS[node.op_type]
        tensors = dict(zip(spec.inputs[1:], node.input[1:], strict=True))
        fields = {"N": self._attribute(node, "N"), "K": self._attribute(node, "K")}
        for suffix, key in (("q", "W"), ("w", "W"), ("d", "D"), ("m", "M"), ("s", "M")):
            if suffix in tensors:
                fields[key] = self._address(self.package.tensor(tensors[suffix]))
        return fields

    @staticmethod
    def _attribute(node: Any, name: str) -> int:
        return int(next(a.i for a in node.attribute if a.name == name))

    @staticmethod
    def _float_bits(node: Any, name: str) -> int:
        value = next(a.f for a in node.attribute if a.name == name)
        return int(np.float64(np.float32(value)).view(np.int64))

    # --- one method per operator --------------------------------------------------------------------------------------

    def _embed(self, node: Any) -> None:
        fields = self._weights(node)
        value = Value(self.arena.take(fields["K"], row_bytes(fields["K"])), fields["K"])
        code = EMBED[str(OPERATORS[node.op_type].weights)]
        record = self._emit(node.name, code, Y=value.offset, Y_STRIDE=value.stride, **fields)
        self._matrix_site(node, (record,))
        self.values[node.output[0]] = value

    def _rotarycossin(self, node: Any) -> None:
        self.inv_freq = np.array(self.package.tensor(node.input[1]), np.float32)

    def _causalmask(self, node: Any) -> None:
        """Attention is causal by position; the mask is for other runtimes."""

    def _rmsnormalization(self, node: Any) -> None:
        x = self.values[node.input[0]]
        if not x.private:  # else every thread has it, or the rows that it normalises
            self._wait()
        y = Value(self.arena.take(x.width, x.stride), x.width, private=True)
        final = node.output[0] in self.final
        weight = self._padded(node.input[1], GROUP)
        record = self._emit(
            node.name,
            Op.RMS_NORM,
            **self._rows(x, y.offset, y.stride),
            W=self._address(weight),
            K=x.width,
            EPSILON=self._float_bits(node, "epsilon"),
            FLAGS=Flag.LAST_ROWS | Flag.OUT_ROWS if final else 0,
        )
        self.sites.append(Site(node.input[1], "norm", (record,), vector=weight))
        self.values[node.output[0]] = y

    @staticmethod
    def _rows(x: Value, y: int, y_stride: int) -> dict[str, int]:
        """Fields of an op that every thread does for itself when one row runs."""
        return {
            "X": x.offset,
            "X_STRIDE": x.stride,
            "X_PRIVATE": x.stride if x.private else 0,
            "Y": y,
            "Y_STRIDE": y_stride,
            "Y_PRIVATE": y_stride,
        }

    def _quantised(self, name: str, code: Op, flags: int) -> dict[str, int]:
        """An int8 form of a value, made where it is first wanted."""
        x = self.values[name]
        tile, row = TILE_BYTES[code](x.width, TILE_ROWS), TILE_BYTES[code](x.width, 1)
        if code not in x.quantised:
            if not x.private:
                self._wait()  # other threads wrote parts of the row
            x.quantised[code] = self.arena.take_tiles(x.width, tile, row)
            fields = self._rows(x, x.quantised[code], tile) | {"Y_PRIVATE": row}
            if code == Op.QUANTIZE:
                limit = THRESHOLDS[self.compute][1 if flags & Flag.OUT_ROWS else 0]
                fields["THRESHOLD"] = int(np.float64(limit).view(np.int64))
            self._emit(f"{name}.quantised", code, **fields, K=x.width, FLAGS=flags)
            self._wait(SEVERAL_ROWS)
        return {"X": x.quantised[code], "X_STRIDE": tile, "X_PRIVATE": row}

    def _linear(self, node: Any) -> None:
        name = node.input[0]
        x = self.values[name]
        fmt = str(OPERATORS[node.op_type].weights)
        final = node.output[0] in self.final
        flags: int = Flag.OUT_ROWS if final else 0
        if fmt in LINEAR_TERNARY:  # its activations are int8 by definition
            code = LINEAR_TERNARY[fmt]
            source = self._quantised(name, Op.QUANTIZE_ROWS, flags)
        elif self.compute != "float32" and fmt != "f32":
            code = LINEAR[fmt]
            source = self._quantised(name, Op.QUANTIZE, flags)
        else:
            code = LINEAR_FLOAT[fmt]
            self._wait(SEVERAL_ROWS if x.private else ALWAYS)
            source = {"X": x.offset, "X_STRIDE": x.stride, "X_PRIVATE": x.stride if x.private else 0}
        fields = source | self._weights(node)
        if final:
            fields |= {"Y_STRIDE": _pad(fields["N"], ROWS) * 4, "FLAGS": flags | Flag.LOGITS}
            self._matrix_site(node, self._multiply(node.name, code, fields), x)
            return
        y = Value(self.arena.take(fields["N"], row_bytes(fields["N"])), fields["N"])
        y.records = self._multiply(node.name, code, fields | {"Y": y.offset, "Y_STRIDE": y.stride})
        self._matrix_site(node, y.records, x)
        self.values[node.output[0]] = y

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

    def _add(self, node: Any) -> None:
        """A bias or a residual: both become part of the linear layer that they follow."""
        first, second = (self.values.get(name) for name in node.input)
        if first is None or second is None:
            value, bias = (first, node.input[1]) if first is not None else (second, node.input[0])
            if value is None or not value.records:
                raise self._unsupported(node, "a bias must follow a linear layer")
            vector = self._padded(bias, ROWS)
            address = self._address(vector)
            for record in value.records:
                self.records[record][Field.BIAS] = address
            self.sites.append(Site(bias, "bias", value.records, vector=vector))
            self.values[node.output[0]] = value
            return
        residual, update = (first, second) if second.records else (second, first)
        if not update.records or residual.width != update.width or update.records[-1] != len(self.records) - 1:
            raise self._unsupported(node, "only a linear layer's output can be added to the residual")
        for record in update.records:
            self.records[record][Field.Y] = residual.offset
            self.records[record][Field.FLAGS] |= Flag.ACCUMULATE
        self.values[node.output[0]] = Value(residual.offset, residual.width)

    def _unsupported(self, node: Any, why: str) -> PackageError:
        return PackageError(
            f"{self.package.folder / 'model.onnx'}: no kernel for node '{node.name}' ({node.op_type}): {why}; "
            "export the checkpoint again with `edgerun export`"
        )

    def _gate(self, node: Any) -> None:
        gate, up = self.values[node.input[0]], self.values[node.input[1]]
        if any(self.records[i][Field.CODE] == Op.LINEAR_TERNARY_TRIPLES for i in (*gate.records, *up.records)):
            self._wait()  # its threads share out blocks of 32 rows; else a thread takes what it wrote itself
        fields = {"X": gate.offset, "UP": up.offset, "X_STRIDE": gate.stride, "N": gate.width}
        self._emit(node.name, GATE[node.op_type], **fields)
        self.values[node.output[0]] = Value(gate.offset, gate.width)

    def _attention(self, node: Any) -> None:
        q, k, v = (self.values[name] for name in node.input[:3])
        n_heads, n_kv_heads, head_dim = (self._attribute(node, a) for a in ("n_heads", "n_kv_heads", "head_dim"))
        head_bytes = kv_head_bytes(self.cache, head_dim)
        if self.attention_scratch is None:
            private = _pad(attention_scratch_bytes(head_dim), 64)
            partials = self.arena.scratch(n_heads * MAX_CHUNKS * 4 * (_pad(head_dim, 32) + 16))
            self.attention_scratch = (self.arena.scratch(private * self.n_threads), private, partials)
            self.layer_bytes = n_kv_heads * head_bytes
        scratch, private, partials = self.attention_scratch
        self._wait()
        y = Value(self.arena.take(n_heads * head_dim, row_bytes(n_heads * head_dim)), n_heads * head_dim, private=True)
        fields = {
            "Y": y.offset,
            "Y_STRIDE": y.stride,
            "Y_PRIVATE": y.stride,
            "Q": q.offset,
            "KEY": k.offset,
            "VALUE": v.offset,
            "Q_STRIDE": q.stride,
            "KV_STRIDE": k.stride,
            "N_HEADS": n_heads,
            "N_KV_HEADS": n_kv_heads,
            "HEAD_DIM": head_dim,
            "KV_HEAD_BYTES": head_bytes,
            "LAYER": self.n_layers * self.layer_bytes,
            "SCALE": self._float_bits(node, "scale"),
            "PARTIALS": partials,
            "SCRATCH": scratch,
            "SCRATCH_PRIVATE": private,
        }
        if node.op_type == "QKNormAttention":
            q_norm, k_norm = (self._padded(name, 1) for name in node.input[3:5])
            fields |= {"Q_NORM": self._address(q_norm), "K_NORM": self._address(k_norm)}
            fields["EPSILON"] = self._float_bits(node, "epsilon")
            record = (len(self.records),)
            self.sites.append(Site(node.input[3], "q_norm", record, vector=q_norm))
            self.sites.append(Site(node.input[4], "k_norm", record, vector=k_norm))
        self._emit(node.name, ATTENTION[self.cache], **fields)
        self._wait()
        self._emit(f"{node.name}.gather", Op.GATHER_ATTENTION, **fields)
        self.n_layers += 1
        self.values[node.output[0]] = y

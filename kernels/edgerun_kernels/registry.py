"""The registry of ops: what the compiled loop can run, and what everybody else knows of it.

An op is its kernel and its entry here. From the entries come the layout of its records, the compiled loop's dispatch
(``runtime.loop.dispatch``), its name in the profile, and, by the formats that it takes, which op a program's encoding
chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .layouts import (
    RECORD_FIELDS,
    Attention,
    Gate,
    Head,
    Input,
    Linear,
    Matrix,
    Norm,
    Projected,
    Quantize,
    Read,
    Scratch,
    Stacked,
    Varied,
)

Layout = tuple[type[IntEnum], ...]
Role = Literal["linear", "linear over float32", "linear over int8 rows", "embedding", "gate", "attention", "runs"]

_EMBED: Layout = (Head, Varied, Input, Matrix)
_LINEAR: Layout = (*_EMBED, Linear)
_SKIPPABLE: Layout = (*_LINEAR, Projected, Stacked)
_SCRATCHED: Layout = (*_SKIPPABLE, Scratch)
_ATTENTION: Layout = (Head, Attention)


@dataclass(frozen=True)
class Entry:
    """An op.

    module: in this package, that has the kernel, which is called as the op in small letters.
    layout: the parts of its record.
    kind: what the profile counts its time as; "" for linear layers, which it calls by their names in the graph.
    twin: its numpy twin in ``reference``; "" where what it computes is no value of its own.
    role, formats: of ops of which there is one a format, what they do, and the formats of weights (of attention, of the
    cache; of a gate, its activations) that this one takes.
    variants: the kernel by which variants act behind it; "" where there is none.
    shares_features: whether threads share out blocks of 16 output features, as the kernels of variants do, too.
    """

    module: str
    layout: Layout
    kind: str = ""
    twin: str = ""
    role: Role | None = None
    formats: tuple[str, ...] = ()
    variants: Literal["", "variant_linear", "variant_embed"] = ""
    shares_features: bool = True


def _linear(module: str, twin: str, role: Role, *formats: str, layout: Layout = _LINEAR) -> Entry:
    return Entry(module, layout, "", twin, role, formats, "variant_linear")


def _embed(twin: str, *formats: str) -> Entry:
    return Entry("ops.embed", _EMBED, "embedding", twin, "embedding", formats, "variant_embed")


def _attention(cache: str) -> Entry:
    return Entry("ops.attention", _ATTENTION, "attention", "attention", "attention", (cache,))


def _runs(cache: str) -> Entry:
    return Entry("ops.shared_keys", _ATTENTION, "attention, making runs", "", "runs", (cache,))


class Op(IntEnum):
    """What an op record does; every op is a kernel with the signature ``(op, run, tid, n_threads)``. Its code is its
    place here: first what a token runs most."""

    entry: Entry
    fields: Mapping[str, int]
    """Of its record: by name, where they lie."""

    def __new__(cls, entry: Entry) -> Op:
        op = int.__new__(cls, len(cls.__members__) + 1)
        op._value_ = len(cls.__members__) + 1
        op.entry = entry
        op.fields = MappingProxyType({f.name: int(f) for part in entry.layout for f in part if f.name != "COUNT"})
        return op

    LINEAR_Q4 = _linear("ops.projection", "linear_q4", "linear", "q4", "q4m", layout=_SKIPPABLE)
    LINEAR_TERNARY = _linear("ops.projection", "linear_ternary", "linear over int8 rows", "ternary", layout=_SKIPPABLE)
    LINEAR_TERNARY_TRIPLES = Entry(
        "ops.projection",
        _SCRATCHED,
        twin="linear_ternary",
        role="linear over int8 rows",
        formats=("ternary_triples",),
        variants="variant_linear",
        shares_features=False,
    )
    LINEAR_TERNARY_COLUMNS = _linear(
        "columns.linear_columns", "linear_ternary", "linear over int8 rows", "ternary_columns", layout=_SCRATCHED
    )
    GATHER_COLUMNS = Entry("columns.linear_columns", _SCRATCHED, variants="variant_linear")
    QUANTIZE = Entry("ops.norm", (Head, Input, Quantize), "quantisation of activations", "quantize")
    RMS_NORM = Entry("ops.norm", (Head, Varied, Input, Norm), "norms", "rms_norm")
    QUANTIZE_ROWS = Entry("ops.norm", (Head, Input), "quantisation of activations", "quantize_rows")
    SKIP_COLUMNS = Entry("ops.projection", (Head, Input, Projected), "quantisation of activations")
    SWIGLU = Entry("ops.mlp", (Head, Gate), "SwiGLU", "swiglu", "gate", ("SwiGLU",))
    SQUARED_RELU = Entry("ops.mlp", (Head, Gate), "squared ReLU", "squared_relu", "gate", ("SquaredReLU",))
    ATTENTION_F16 = _attention("f16")
    ATTENTION_F32 = _attention("f32")
    ATTENTION_Q8 = _attention("q8")
    GATHER_ATTENTION = Entry("ops.attention", _ATTENTION, "attention, joining its parts")
    LINEAR_Q8 = _linear("ops.projection", "linear_q8", "linear", "q8", layout=_SKIPPABLE)
    LINEAR_Q6K = _linear("ops.linear", "linear_q6k", "linear", "q6k")
    LINEAR_F32 = _linear("ops.linear_float", "linear", "linear over float32", "f32")
    LINEAR_Q4_FLOAT = _linear("ops.linear_float", "linear", "linear over float32", "q4", "q4m")
    LINEAR_Q8_FLOAT = _linear("ops.linear_float", "linear", "linear over float32", "q8")
    LINEAR_Q6K_FLOAT = _linear("ops.linear_float", "linear", "linear over float32", "q6k")
    EMBED_Q4 = _embed("embed_q4", "q4", "q4m")
    EMBED_Q8 = _embed("embed_q8", "q8")
    EMBED_Q6K = _embed("embed_q6k", "q6k")
    EMBED_F32 = _embed("embed_f32", "f32")
    SELECT_PAGES = Entry("ops.page_selection", _ATTENTION, "attention, choosing pages")
    COMPACT_F16 = _runs("f16")
    COMPACT_Q8 = _runs("q8")
    COMPACT_F32 = _runs("f32")
    READ_MEMORY = Entry("ops.bandwidth", (Head, Read), "reading memory")

    @property
    def kernel(self) -> str:
        """The name of the compiled function."""
        return self.name.lower()

    def has(self, part: type[IntEnum]) -> bool:
        """Whether the part is in its layout."""
        return part in self.entry.layout


def by_format(role: Role) -> dict[str, Op]:
    """The ops that do this, by the format that they take."""
    return {fmt: op for op in Op if op.entry.role == role for fmt in op.entry.formats}


def record(op: Op, **fields: int) -> NDArray[np.int64]:
    """A record, int64 [RECORD_FIELDS]: these fields, and 0 in all others. Raises KeyError for a field that the op does
    not have."""
    made = np.zeros(RECORD_FIELDS, np.int64)
    made[Head.CODE] = op
    put(made, **fields)
    return made


def put(made: NDArray[np.int64], **fields: int) -> None:
    """Writes fields of a record, which its op must have."""
    op = Op(made[Head.CODE])
    for name, value in fields.items():
        if name not in op.fields:
            raise KeyError(f"{op.name} has no field {name}; it has {', '.join(op.fields)}")
        made[op.fields[name]] = value

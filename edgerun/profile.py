"""Where the time of decoding goes: per kind of operation, with the bytes that it reads from memory."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgerun.package import triples
from edgerun_kernels.record import GROUP, PAGE, ROWS, SUPER_GROUPS, Field, Op

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.program.tape import Tape
    from edgerun.session import Session

_Q4, _Q8, _Q6K = 4 * 64 + 2 * ROWS, 8 * 64 + 2 * ROWS, 6 * 64 + 2 * ROWS // SUPER_GROUPS
_GROUP_BYTES = {
    Op.LINEAR_Q4: _Q4,
    Op.LINEAR_Q4_FLOAT: _Q4,
    Op.LINEAR_Q8: _Q8,
    Op.LINEAR_Q8_FLOAT: _Q8,
    Op.LINEAR_Q6K: _Q6K,
    Op.LINEAR_Q6K_FLOAT: _Q6K,
    Op.LINEAR_TERNARY: 2 * 64,
    Op.LINEAR_TERNARY_COLUMNS: 2 * 64,
    Op.COLUMNS_TERNARY: 2 * 64,
    Op.COLUMNS_Q4: _Q4,
    Op.COLUMNS_Q8: _Q8,
    Op.COLUMNS_DELTA_Q4: _Q4,
    Op.COLUMNS_DELTA_Q8: _Q8,
}
"""Bytes of 16 rows by 32 columns, scales included, minima and factors not."""
_BY_COLUMN = (
    Op.LINEAR_TERNARY_COLUMNS,
    Op.COLUMNS_TERNARY,
    Op.COLUMNS_Q4,
    Op.COLUMNS_Q8,
    Op.COLUMNS_DELTA_Q4,
    Op.COLUMNS_DELTA_Q8,
)
"""Whose bytes those of the columns that they read are, and of q4 and q8 the scales."""
_ATTENTION = (Op.ATTENTION_F16, Op.ATTENTION_F32, Op.ATTENTION_Q8)
_KINDS = {
    Op.RMS_NORM: "norms",
    Op.QUANTIZE: "quantisation of activations",
    Op.QUANTIZE_ROWS: "quantisation of activations",
    Op.SWIGLU: "SwiGLU",
    Op.SQUARED_RELU: "squared ReLU",
    Op.KEEP_LARGE: "keeping large inputs",
    Op.KEEP_LARGE_ROW: "keeping large inputs",
    Op.KEEP_CHANGES: "keeping changed inputs",
    Op.JOIN_COLUMNS: "joining columns, or all of them",
    Op.JOIN_DELTA: "joining columns, or all of them",
    Op.JOIN_TERNARY: "joining columns, or all of them",
    Op.GATHER_ATTENTION: "attention, joining its parts",
    Op.COMPACT_F16: "attention, making runs",
    Op.COMPACT_F32: "attention, making runs",
    Op.COMPACT_Q8: "attention, making runs",
    Op.SELECT_PAGES: "attention, choosing pages",
    Op.EMBED_Q4: "embedding",
    Op.EMBED_Q8: "embedding",
    Op.EMBED_Q6K: "embedding",
    Op.EMBED_F32: "embedding",
    **dict.fromkeys(_ATTENTION, "attention"),
}


@dataclass(frozen=True)
class KindTime:
    """One kind of operation in an average decoded token.

    kind: what it is; a linear layer by its name in the graph, all layers together.  us: microseconds, waiting for other
    threads included.  share: of the whole time, 0 to 1.  bytes_read: weights, keys and values.  gb_per_s: bytes_read
    over the time, in 1e9 bytes a second.  share_of_bandwidth: that over what memory was measured to give, 0 to 1; more
    where a cache held the data.
    """

    kind: str
    us: float
    share: float
    bytes_read: int
    gb_per_s: float
    share_of_bandwidth: float
    columns_skipped: float | None = None
    """Of a layer that leaves out columns whose input is zero: their share, 0 to 1. What they hold is not in bytes_read.
    Where it may take all columns after all, what that takes stands beside, and its bytes here."""


def profile_decode(model: Model, session: Session, tokens: Sequence[int], gb_per_s: float) -> list[KindTime]:
    """Decodes the tokens, which the session then holds, and gives the kinds, slowest first, and a last line for all.

    gb_per_s: the memory's bandwidth with as many threads, which shares are taken of.
    """
    first, before = session.position, session.attended
    measured = np.zeros((2, len(session.tape.ops)), np.int64)
    model.profile = measured
    start = time.perf_counter()
    try:
        for token in tokens:
            session.decode(token)
    finally:
        model.profile = None
    us = (time.perf_counter() - start) * 1e6 / len(tokens)
    positions = first + (len(tokens) + 1) / 2
    read_before, exact_before = before
    attended = session.attended
    if attended.exact > exact_before:  # policies: of all that was there, so much was read
        positions *= (attended.read - read_before) / (attended.exact - exact_before)
    times: dict[str, float] = {}
    read: dict[str, int] = {}
    skipped: dict[str, list[float]] = {}
    whole = int(measured[0].sum())
    for name, op, (spent, columns) in zip(session.tape.names, session.tape.ops, measured.T.tolist(), strict=True):
        kind = _KINDS.get(Op(op[Field.CODE])) or re.sub(r"^layers\.\d+\.|\.gather$|\.columns$", "", name)
        times[kind] = times.get(kind, 0.0) + spent * us / whole
        unread = 0
        if op[Field.CODE] in _BY_COLUMN:
            left_out = max(0.0, 1 - columns / len(tokens) / int(op[Field.K]))
            skipped.setdefault(kind, []).append(left_out)
            unread = int(left_out * _column_bytes(op))
        read[kind] = read.get(kind, 0) + _bytes_read(op, positions) - unread
    kinds = sorted(times, key=lambda kind: -times[kind])
    shares = {kind: sum(parts) / len(parts) for kind, parts in skipped.items()}
    return [
        *(_line(kind, times[kind], us, read[kind], gb_per_s, shares.get(kind)) for kind in kinds),
        _line("all", us, us, sum(read.values()), gb_per_s),
    ]


def _line(kind: str, us: float, whole: float, read: int, bandwidth: float, skipped: float | None = None) -> KindTime:
    speed = read / us / 1e3 if us else 0.0
    return KindTime(kind, us, us / whole, read, speed, speed / bandwidth, skipped)


def weight_bytes_skipped(tape: Tape, columns: NDArray[np.int64], n_tokens: int) -> float:
    """The share of the weights' bytes (the output head's too) that n_tokens decoded tokens did not read, 0 to 1.

    columns: int64 [ops], what they read together, as ``Model.profile`` collects it.
    """
    whole = unread = 0.0
    for op, read in zip(tape.ops, columns.tolist(), strict=True):
        if op[Field.CODE] in _ATTENTION:
            continue
        whole += _bytes_read(op, 0)
        if op[Field.CODE] in _BY_COLUMN:
            unread += max(0.0, 1 - read / max(n_tokens, 1) / int(op[Field.K])) * _column_bytes(op)
    return unread / whole


def weight_time_saved(tape: Tape, columns: NDArray[np.int64]) -> float:
    """Of the time in which all weights are read, the share that tokens did not need, 0 to 1: a projection of which as
    many columns are read as pay at most takes as long as one of which all are.

    columns: int64 [tokens, ops], what each token read.
    """
    whole = saved = 0.0
    for op, read in zip(tape.ops, columns.T, strict=True):
        if op[Field.CODE] in _ATTENTION:
            continue
        whole += _bytes_read(op, 0)
        if op[Field.CODE] in _BY_COLUMN and op[Field.MOST]:
            saved += float(np.maximum(0, 1 - read / int(op[Field.MOST])).mean()) * _column_bytes(op)
    return saved / whole


def bytes_a_token(tape: Tape, positions: int) -> tuple[int, int]:
    """What a dense tape reads for a token with ``positions`` in the cache: weights, keys and values."""
    read = [(op[Field.CODE] in _ATTENTION, _bytes_read(op, positions)) for op in tape.ops]
    return sum(n for cached, n in read if not cached), sum(n for cached, n in read if cached)


def _column_bytes(op: NDArray[np.int64]) -> int:
    """What all columns hold, without scales and minima."""
    blocks, groups = -(-int(op[Field.N]) // ROWS), -(-int(op[Field.K]) // GROUP)
    whole: int = _GROUP_BYTES[Op(op[Field.CODE])] // 64 * 64
    return blocks * groups * whole


def _bytes_read(op: NDArray[np.int64], positions: float) -> int:
    """What an op reads of weights or cache for one token with ``positions`` in the cache."""
    code = Op(op[Field.CODE])
    blocks, groups = -(-int(op[Field.N]) // ROWS), -(-int(op[Field.K]) // GROUP)
    if code in _GROUP_BYTES:
        return blocks * groups * (_GROUP_BYTES[code] + (2 * ROWS if op[Field.M] else 0))
    if code == Op.LINEAR_TERNARY_TRIPLES:
        return math.prod(triples.shape(int(op[Field.N]), int(op[Field.K])))
    if code == Op.LINEAR_F32:
        return blocks * ROWS * 4 * int(op[Field.K])
    if code in _ATTENTION:
        return int(int(op[Field.N_KV_HEADS]) * int(op[Field.KV_HEAD_BYTES]) * positions / PAGE)
    return 0

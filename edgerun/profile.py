"""Where the time of decoding goes: per kind of operation, with the bytes that it reads from memory."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.package import triples
from edgerun.sparsity.projections import TERNARY
from edgerun_kernels.layouts import Attention, Head, Input, Linear, Matrix, Projected
from edgerun_kernels.record import GROUP, PAGE, ROWS, SUPER_GROUPS
from edgerun_kernels.registry import Op

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.program.tape import Tape
    from edgerun.session import Session
    from edgerun.sparsity.policy import Policy

_Q4, _TERNARY = 4 * 64 + 2 * ROWS, 2 * 64
_GROUP_BYTES = {
    "q4": _Q4,
    "q4m": _Q4,
    "q8": 8 * 64 + 2 * ROWS,
    "q6k": 6 * 64 + 2 * ROWS // SUPER_GROUPS,
    "ternary": _TERNARY,
    "ternary_columns": _TERNARY,
}
"""By weight format, bytes of 16 rows by 32 columns, scales included, minima and factors not."""
_COLUMNS = {
    "q4": (4 * 64, 2 * ROWS),
    "q4m": (4 * 64, 4 * ROWS),
    "q8": (8 * 64, 2 * ROWS),
    "ternary": (_TERNARY, 0),
    "ternary_triples": (_TERNARY, 0),
}
"""The same of projections that lie column by column beside the package: of the columns, and of scales and minima."""


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
    The time to choose them is here; where it takes all columns after all, what that takes stands beside, under
    "joining columns, or all of them", and its bytes here."""


def profile_decode(model: Model, session: Session, tokens: Sequence[int], gb_per_s: float) -> list[KindTime]:
    """Decodes the tokens, which the session then holds, and gives the kinds, slowest first, and a last line for all.

    gb_per_s: the memory's bandwidth with as many threads, which shares are taken of.
    """
    first, before = session.position, session.attended
    measured = np.zeros((2, len(model.tape.ops)), np.int64)
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
    for name, op, (spent, columns) in zip(model.tape.names, model.tape.ops, measured.T.tolist(), strict=True):
        kind = _kind(name, op, session.policy)
        times[kind] = times.get(kind, 0.0) + spent * us / whole
        weights = _weights(op, session.policy)
        unread = 0
        if weights.by_column:
            left_out = max(0.0, 1 - columns / len(tokens) / int(op[Input.K]))
            skipped.setdefault(kind, []).append(left_out)
            unread = int(left_out * weights.by_column)
        read[kind] = read.get(kind, 0) + weights.bytes + _cache_bytes(op, positions) - unread
    kinds = sorted(times, key=lambda kind: -times[kind])
    shares = {kind: sum(parts) / len(parts) for kind, parts in skipped.items()}
    return [
        *(_line(kind, times[kind], us, read[kind], gb_per_s, shares.get(kind)) for kind in kinds),
        _line("all", us, us, sum(read.values()), gb_per_s),
    ]


def _line(kind: str, us: float, whole: float, read: int, bandwidth: float, skipped: float | None = None) -> KindTime:
    speed = read / us / 1e3 if us else 0.0
    return KindTime(kind, us, us / whole, read, speed, speed / bandwidth, skipped)


def weight_bytes_skipped(tape: Tape, policy: Policy | None, columns: NDArray[np.int64], n_tokens: int) -> float:
    """The share of the weights' bytes (the output head's too) that n_tokens decoded tokens did not read, 0 to 1.

    policy: what the tape ran with. columns: int64 [ops], what they read together, as ``Model.profile`` collects it.
    """
    whole = unread = 0.0
    for op, read in zip(tape.ops, columns.tolist(), strict=True):
        weights = _weights(op, policy)
        whole += weights.bytes
        if weights.by_column:
            unread += max(0.0, 1 - read / max(n_tokens, 1) / int(op[Input.K])) * weights.by_column
    return unread / whole


def weight_time_saved(tape: Tape, policy: Policy, columns: NDArray[np.int64]) -> float:
    """Of the time in which all weights are read, the share that tokens did not need, 0 to 1: a projection of which as
    many columns are read as pay at most takes as long as one of which all are.

    policy: what the tape ran with. columns: int64 [tokens, ops], what each token read.
    """
    whole = saved = 0.0
    for op, read in zip(tape.ops, columns.T, strict=True):
        weights = _weights(op, policy)
        whole += weights.bytes
        index = _projection(op)
        if weights.by_column and index in policy.chosen:
            saved += float(np.maximum(0, 1 - read / policy.most(index)).mean()) * weights.by_column
    return saved / whole


def bytes_a_token(tape: Tape, positions: int) -> tuple[int, int]:
    """What a tape without policies reads for a token with ``positions`` in the cache: weights, keys and values."""
    return sum(_weight_bytes(op) for op in tape.ops), sum(_cache_bytes(op, positions) for op in tape.ops)


class _Weights(NamedTuple):
    """What an op reads of weights at most; and of that, what is in columns that it may leave unread, without scales and
    minima."""

    bytes: int
    by_column: int = 0


def _weights(op: NDArray[np.int64], policy: Policy | None) -> _Weights:
    """Of layers whose columns a policy may leave unread, the op that chooses them reads all: where it chooses none, the
    layers read as many."""
    code, index = Op(op[Head.CODE]), _projection(op)
    one = None if policy is None else policy.chosen.get(index)
    if code == Op.LINEAR_TERNARY_COLUMNS:
        return _Weights(_weight_bytes(op), _blocks(int(op[Matrix.N]), int(op[Input.K])) * _TERNARY)
    if one is not None and one.projection.fmt in _COLUMNS:
        if code != Op.SKIP_COLUMNS:
            return _Weights(0)
        projection, (codes, scales) = one.projection, _COLUMNS[one.projection.fmt]
        blocks = _blocks(projection.stack if projection.fmt in TERNARY else sum(projection.rows), projection.k)
        return _Weights(blocks * (codes + scales), blocks * codes)
    return _Weights(_weight_bytes(op))


def _kind(name: str, op: NDArray[np.int64], policy: Policy | None) -> str:
    """What the time of an op counts as."""
    code, index = Op(op[Head.CODE]), _projection(op)
    one = None if policy is None else policy.chosen.get(index)
    if code == Op.SKIP_COLUMNS:
        if one is None:
            return code.entry.kind  # it looks for a policy, and returns
        name = one.projection.name
    elif one is not None and one.projection.fmt in _COLUMNS:
        return "joining columns, or all of them"
    return code.entry.kind or re.sub(r"^layers\.\d+\.|\.gather$", "", name)


def _projection(op: NDArray[np.int64]) -> int:
    """Which record of a policy's table is of an op's projection; 0: none."""
    return int(op[Projected.PROJECTION]) if Op(op[Head.CODE]).has(Projected) else 0


def _blocks(rows: int, k: int) -> int:
    """Of 16 rows by 32 columns."""
    return -(-rows // ROWS) * -(-k // GROUP)


def _weight_bytes(op: NDArray[np.int64]) -> int:
    """What an op reads of weights for one token, if it reads all."""
    code = Op(op[Head.CODE])
    if not code.has(Linear) or not code.entry.formats:  # of a layer with two ops the first reads them
        return 0
    n, k, fmt = int(op[Matrix.N]), int(op[Input.K]), code.entry.formats[0]
    if fmt == "ternary_triples":
        return math.prod(triples.shape(n, k))
    if fmt == "f32":
        return -(-n // ROWS) * ROWS * 4 * k
    return _blocks(n, k) * (_GROUP_BYTES[fmt] + (2 * ROWS if op[Matrix.M] else 0))


def _cache_bytes(op: NDArray[np.int64], positions: float) -> int:
    """What it reads of the cache for one token with ``positions`` there."""
    if Op(op[Head.CODE]).entry.role != "attention":
        return 0
    return int(int(op[Attention.N_KV_HEADS]) * int(op[Attention.KV_HEAD_BYTES]) * positions / PAGE)

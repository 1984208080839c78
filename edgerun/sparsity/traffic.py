"""What an op reads from memory for one decoded token: weights, keys and values, and what a policy leaves unread."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.package import triples
from edgerun.sparsity.projections import TERNARY
from edgerun_kernels.layouts import Attention, Head, Input, Linear, Matrix, Projected
from edgerun_kernels.record import GROUP, PAGE, ROWS, SUPER_GROUPS
from edgerun_kernels.registry import Op

if TYPE_CHECKING:
    from edgerun.program.tape import Tape
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
COLUMNS = {
    "q4": (4 * 64, 2 * ROWS),
    "q4m": (4 * 64, 4 * ROWS),
    "q8": (8 * 64, 2 * ROWS),
    "ternary": (_TERNARY, 0),
    "ternary_triples": (_TERNARY, 0),
}
"""The same of projections that lie column by column beside the package: of the columns, and of scales and minima."""


def weight_bytes_skipped(tape: Tape, policy: Policy | None, columns: NDArray[np.int64], n_tokens: int) -> float:
    """The share of the weights' bytes (the output head's too) that n_tokens decoded tokens did not read, 0 to 1.

    policy: what the tape ran with. columns: int64 [ops], what they read together, as ``Model.profile`` collects it.
    """
    whole = unread = 0.0
    for op, read in zip(tape.ops, columns.tolist(), strict=True):
        weights = weights_read(op, policy)
        whole += weights.bytes
        if weights.by_column:
            unread += max(0.0, 1 - read / max(n_tokens, 1) / int(op[Input.K])) * weights.by_column
    return unread / whole


def weight_time_saved(tape: Tape, policy: Policy, columns: NDArray[np.int64]) -> float:
    """The share of the time in which all weights are read that tokens did not need, 0 to 1: a projection of which as
    many columns are read as pay at most takes as long as one of which all are.

    policy: what the tape ran with. columns: int64 [tokens, ops], what each token read.
    """
    whole = saved = 0.0
    for op, read in zip(tape.ops, columns.T, strict=True):
        weights = weights_read(op, policy)
        whole += weights.bytes
        index = projection_of(op)
        if weights.by_column and index in policy.chosen:
            saved += float(np.maximum(0, 1 - read / policy.most(index)).mean()) * weights.by_column
    return saved / whole


def bytes_a_token(tape: Tape, positions: int) -> tuple[int, int]:
    """What a tape without policies reads for a token with ``positions`` in the cache: weights, keys and values."""
    return sum(_weight_bytes(op) for op in tape.ops), sum(cache_bytes(op, positions) for op in tape.ops)


class _Weights(NamedTuple):
    """What an op reads of weights at most; and of that, what is in columns that it may leave unread, without scales and
    minima."""

    bytes: int
    by_column: int = 0


def weights_read(op: NDArray[np.int64], policy: Policy | None) -> _Weights:
    """What an op reads. The op that chooses columns counts as the one that reads those of its layers: where it chooses
    none, the layers read as many."""
    code, index = Op(op[Head.CODE]), projection_of(op)
    one = None if policy is None else policy.chosen.get(index)
    if code == Op.LINEAR_TERNARY_COLUMNS:
        return _Weights(_weight_bytes(op), _blocks(int(op[Matrix.N]), int(op[Input.K])) * _TERNARY)
    if one is not None and one.projection.fmt in COLUMNS:
        if code != Op.SKIP_COLUMNS:
            return _Weights(0)
        projection, (codes, scales) = one.projection, COLUMNS[one.projection.fmt]
        blocks = _blocks(projection.stack if projection.fmt in TERNARY else sum(projection.rows), projection.k)
        return _Weights(blocks * (codes + scales), blocks * codes)
    return _Weights(_weight_bytes(op))


def projection_of(op: NDArray[np.int64]) -> int:
    """Which record of a policy's table is of an op's projection; 0: none."""
    return int(op[Projected.PROJECTION]) if Op(op[Head.CODE]).has(Projected) else 0


def _blocks(rows: int, k: int) -> int:
    """Blocks of 16 rows by 32 columns."""
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


def cache_bytes(op: NDArray[np.int64], positions: float) -> int:
    """What it reads of the cache for one token with ``positions`` there."""
    if Op(op[Head.CODE]).entry.role != "attention":
        return 0
    return int(int(op[Attention.N_KV_HEADS]) * int(op[Attention.KV_HEAD_BYTES]) * positions / PAGE)

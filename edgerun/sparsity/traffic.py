"""What an op reads from memory for one decoded token: weights, keys and values, and what a policy leaves unread."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.package import triples
from edgerun.sparsity.projections import TERNARY
from edgerun_kernels.record import GROUP, PAGE, ROWS, SUPER_GROUPS, Field, Op

if TYPE_CHECKING:
    from edgerun.program.tape import Tape
    from edgerun.sparsity.policy import Policy

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
}
"""Bytes of 16 rows by 32 columns, scales included, minima and factors not."""
COLUMNS = {
    "q4": (4 * 64, 2 * ROWS),
    "q4m": (4 * 64, 4 * ROWS),
    "q8": (8 * 64, 2 * ROWS),
    "ternary": (2 * 64, 0),
    "ternary_triples": (2 * 64, 0),
}
"""The same of projections that lie column by column beside the package: of the columns, and of scales and minima."""
_HAVE_PROJECTION = (
    Op.SKIP_COLUMNS,
    Op.LINEAR_Q4,
    Op.LINEAR_Q8,
    Op.LINEAR_TERNARY,
    Op.LINEAR_TERNARY_TRIPLES,
    Op.LINEAR_TERNARY_COLUMNS,
    Op.GATHER_COLUMNS,
)
ATTENTION = (Op.ATTENTION_F16, Op.ATTENTION_F32, Op.ATTENTION_Q8)


def weight_bytes_skipped(tape: Tape, policy: Policy | None, columns: NDArray[np.int64], n_tokens: int) -> float:
    """The share of the weights' bytes (the output head's too) that n_tokens decoded tokens did not read, 0 to 1.

    policy: what the tape ran with. columns: int64 [ops], what they read together, as ``Model.profile`` collects it.
    """
    whole = unread = 0.0
    for op, read in zip(tape.ops, columns.tolist(), strict=True):
        weights = weights_read(op, policy)
        whole += weights.bytes
        if weights.by_column:
            unread += max(0.0, 1 - read / max(n_tokens, 1) / int(op[Field.K])) * weights.by_column
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
    code, index = Op(op[Field.CODE]), projection_of(op)
    one = None if policy is None else policy.chosen.get(index)
    if code == Op.LINEAR_TERNARY_COLUMNS:
        return _Weights(_weight_bytes(op), _blocks(int(op[Field.N]), int(op[Field.K])) * 2 * 64)
    if one is not None and one.projection.fmt in COLUMNS:
        if code != Op.SKIP_COLUMNS:
            return _Weights(0)
        projection, (codes, scales) = one.projection, COLUMNS[one.projection.fmt]
        blocks = _blocks(projection.stack if projection.fmt in TERNARY else sum(projection.rows), projection.k)
        return _Weights(blocks * (codes + scales), blocks * codes)
    return _Weights(_weight_bytes(op))


def projection_of(op: NDArray[np.int64]) -> int:
    """Which record of a policy's table is of an op's projection; 0: none."""
    return int(op[Field.PROJECTION]) if op[Field.CODE] in _HAVE_PROJECTION else 0


def _blocks(rows: int, k: int) -> int:
    """Blocks of 16 rows by 32 columns."""
    return -(-rows // ROWS) * -(-k // GROUP)


def _weight_bytes(op: NDArray[np.int64]) -> int:
    """What an op reads of weights for one token, if it reads all."""
    code = Op(op[Field.CODE])
    if code in _GROUP_BYTES:
        n_bytes = _GROUP_BYTES[code] + (2 * ROWS if op[Field.M] else 0)
        return _blocks(int(op[Field.N]), int(op[Field.K])) * n_bytes
    blocks = -(-int(op[Field.N]) // ROWS)
    if code == Op.LINEAR_TERNARY_TRIPLES:
        return math.prod(triples.shape(int(op[Field.N]), int(op[Field.K])))
    if code == Op.LINEAR_F32:
        return blocks * ROWS * 4 * int(op[Field.K])
    return 0


def cache_bytes(op: NDArray[np.int64], positions: float) -> int:
    """What it reads of the cache for one token with ``positions`` there."""
    if op[Field.CODE] not in ATTENTION:
        return 0
    return int(int(op[Field.N_KV_HEADS]) * int(op[Field.KV_HEAD_BYTES]) * positions / PAGE)

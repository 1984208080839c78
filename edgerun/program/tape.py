"""What encoding makes: the records that the compiled loop runs, and the sizes of the memory that they want."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.program.ops import Op

SiteKind = Literal["linear", "embedding", "norm", "bias", "q_norm", "k_norm"]


class Site(NamedTuple):
    """A place where a tape uses a weight of the package, so that a variant can change it.

    name: of the weight in the package. kind: what uses it. records: of the ops that do. vector: of a norm or a bias,
    the float32 values, padded with zeros. A site's index is its place in a sequence's table (``record.Sequence``); what
    is added to a bias stands in the place of its layer.
    """

    name: str
    kind: SiteKind
    records: tuple[int, ...]
    vector: NDArray[np.float32] | None = None


class Encoded(NamedTuple):
    """An op of the program, and its records in a tape.

    records: those of the op alone, in order.  quantised: of a linear layer, the record that quantises its input, which
    other layers may share; None where it multiplies float32.
    """

    op: Op
    records: tuple[int, ...]
    quantised: int | None = None


@dataclass(frozen=True)
class Tape:
    """An encoded model; immutable, shared by all its sessions.

    ops: int64 [n_ops, RECORD_FIELDS].  names: what each op computes, the graph's name of it.
    arena_bytes: activations and scratch of one run.  max_rows: tokens that one run may hold.
    page_bytes: one page (record.PAGE positions) of a session's cache.
    vocab_size, logits_stride: logits of a row, and the float32 elements from row to row (padded to 16).
    inv_freq: float32 [head_dim / 2], the rotary frequencies.
    sites: where weights are used.
    encoded: the program's ops, in order, and which records they are.
    """

    ops: NDArray[np.int64]
    names: tuple[str, ...]
    arena_bytes: int
    max_rows: int
    page_bytes: int
    vocab_size: int
    logits_stride: int
    inv_freq: NDArray[np.float32]
    sites: tuple[Site, ...] = field(repr=False)
    encoded: tuple[Encoded, ...] = field(repr=False)
    arrays: list[NDArray[Any]] = field(repr=False)
    """Everything that the records point to, kept alive."""

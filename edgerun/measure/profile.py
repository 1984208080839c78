"""Where the time of decoding goes: per kind of operation, with the bytes that it reads from memory."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgerun.sparsity.traffic import COLUMNS, cache_bytes, projection_of, weights_read
from edgerun_kernels.layouts import Head, Input
from edgerun_kernels.registry import Op

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.session import Session
    from edgerun.sparsity.policy import Policy


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
    """The share of the columns that a layer leaves out where their input is zero, 0 to 1. What they hold is not in
    bytes_read. The time to choose them is here; where it takes all columns after all, what that takes stands beside,
    under "joining columns, or all of them", and its bytes here."""


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
        weights = weights_read(op, session.policy)
        unread = 0
        if weights.by_column:
            left_out = max(0.0, 1 - columns / len(tokens) / int(op[Input.K]))
            skipped.setdefault(kind, []).append(left_out)
            unread = int(left_out * weights.by_column)
        read[kind] = read.get(kind, 0) + weights.bytes + cache_bytes(op, positions) - unread
    kinds = sorted(times, key=lambda kind: -times[kind])
    shares = {kind: sum(parts) / len(parts) for kind, parts in skipped.items()}
    return [
        *(_line(kind, times[kind], us, read[kind], gb_per_s, shares.get(kind)) for kind in kinds),
        _line("all", us, us, sum(read.values()), gb_per_s),
    ]


def _line(kind: str, us: float, whole: float, read: int, bandwidth: float, skipped: float | None = None) -> KindTime:
    speed = read / us / 1e3 if us else 0.0
    return KindTime(kind, us, us / whole, read, speed, speed / bandwidth, skipped)


def _kind(name: str, op: NDArray[np.int64], policy: Policy | None) -> str:
    """What the time of an op counts as."""
    code, index = Op(op[Head.CODE]), projection_of(op)
    one = None if policy is None else policy.chosen.get(index)
    if code == Op.SKIP_COLUMNS:
        if one is None:
            return code.entry.kind  # it looks for a policy, and returns
        return re.sub(r"^layers\.\d+\.", "", one.projection.name)
    if one is not None and one.projection.fmt in COLUMNS:
        return "joining columns, or all of them"
    return code.entry.kind or re.sub(r"^layers\.\d+\.|\.gather$", "", name)

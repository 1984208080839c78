"""A session's tape under attention policies: the records of attention told what to read, and before or behind them
those that make runs or choose pages."""

from __future__ import annotations

import numpy as np

from edgerun.attention.spec import Attention
from edgerun.program.tape import Record, Tape
from edgerun_kernels.record import Field, LayerState, Mode, Op

COMPACT = {
    Op.ATTENTION_F16: Op.COMPACT_F16,
    Op.ATTENTION_F32: Op.COMPACT_F32,
    Op.ATTENTION_Q8: Op.COMPACT_Q8,
}


def with_attention(tape: Tape, attention: Attention) -> Tape:
    """The tape as the policies want it; the same one if there are none."""
    deltallm, delta = attention.deltallm, attention.delta
    if deltallm is None and delta is None:
        return tape
    records, layer = [], -1
    for i, (op, name) in enumerate(zip(tape.ops, tape.names, strict=True)):
        code = Op(op[Field.CODE])
        if code not in (*COMPACT, Op.GATHER_ATTENTION):
            records.append(Record(op, name, i))
            continue
        changed = np.array(op)
        if code in COMPACT:
            layer += 1
        sparse = delta is not None and layer not in (*delta.full, *delta.select)
        selects = delta is not None and layer in delta.select
        runs = deltallm is not None and not sparse
        changed[Field.MODE] = Mode.PAGES if sparse else Mode.RUNS if runs else Mode.ALL
        changed[Field.STATE] = 8 * LayerState.COUNT * layer
        changed[Field.EXPORT] = selects
        if code in COMPACT and runs:
            records.append(Record(_other(changed, COMPACT[code]), f"{name}.runs"))
        records.append(Record(changed, name, i))
        if code == Op.GATHER_ATTENTION and selects:
            records.append(Record(_other(changed, Op.SELECT_PAGES), f"{name}.select"))
    return tape.rewritten(records)


def _other(op: np.ndarray, code: Op) -> np.ndarray:
    record = np.array(op)
    record[Field.CODE], record[Field.BARRIER] = code, 0
    return record

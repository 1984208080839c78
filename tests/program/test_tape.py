"""A tape with records put between its own: what names records still names the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgerun.program.encode import encode
from edgerun.program.open import open_package
from edgerun.program.tape import Record
from edgerun.sparsity.projections import projections
from edgerun_kernels.record import Field
from tests.package import tiny


def test_sites_and_ops_follow_their_records(tmp_path: Path) -> None:
    package = open_package(tiny.make(tmp_path, tiny.BITNET))
    tape = encode(package.program, package.tensor, n_threads=2, compute="mixed", cache="f16", max_rows=4)
    records = []
    for i, (op, name) in enumerate(zip(tape.ops, tape.names, strict=True)):
        if i % 3 == 0:
            records.append(Record(np.zeros(Field.COUNT, np.int64), "new"))
        records.append(Record(op, name, i))
    longer = tape.rewritten(records)
    assert len(longer.ops) == len(longer.names) == len(records) > len(tape.ops)
    for one, other in ((tape.sites, longer.sites), (tape.encoded, longer.encoded)):
        for old, new in zip(one, other, strict=True):
            np.testing.assert_array_equal(tape.ops[list(old.records)], longer.ops[list(new.records)])
    for before, after in zip(projections(tape), projections(longer), strict=True):
        assert after.name == before.name
        assert tape.names[before.quantize] == longer.names[after.quantize]
        assert [tape.names[i] for i in before.records] == [longer.names[i] for i in after.records]

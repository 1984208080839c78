"""Which records a tape has for each op, and where it tells variants and policies what is theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgerun.program.encode import Compute, encode
from edgerun.program.open import open_package
from edgerun.program.ops import Attention
from edgerun_kernels import layouts
from edgerun_kernels.layouts import Head, Linear, Varied
from edgerun_kernels.record import Flag, LayerState
from edgerun_kernels.registry import Op
from tests.package import tiny


def test_sites_are_told_to_the_last_record_of_their_layer(tmp_path: Path) -> None:
    package = open_package(tiny.make(tmp_path, tiny.BITNET))
    tape = encode(package.program, package.tensor, n_threads=2, compute="mixed", cache="f16", max_rows=4)
    told = {i for i, op in enumerate(tape.ops) if op[Head.CODE] != 0 and op[Head.FLAGS] & Flag.SITE}
    wanted = {site.records[-1]: index for index, site in enumerate(tape.sites) if site.kind != "bias"}
    assert told == set(wanted)
    for record, index in wanted.items():
        assert tape.ops[record, Varied.SITE] == index
        if tape.sites[index].kind == "linear":
            assert tape.ops[record, Linear.INPUT_STRIDE] > 0


def test_attention_has_its_records_whatever_the_policies(tmp_path: Path) -> None:
    package = open_package(tiny.make(tmp_path))
    tape = encode(package.program, package.tensor, n_threads=2, compute="mixed", cache="q8", max_rows=4)
    layers = [encoded for encoded in tape.encoded if isinstance(encoded.op, Attention)]
    for layer, encoded in enumerate(layers):
        codes = [Op(tape.ops[i, Head.CODE]) for i in encoded.records]
        assert codes == [Op.COMPACT_Q8, Op.ATTENTION_Q8, Op.GATHER_ATTENTION, Op.SELECT_PAGES]
        for record in encoded.records:
            assert tape.ops[record, layouts.Attention.STATE] == 8 * LayerState.COUNT * layer


@pytest.mark.parametrize("compute", ["mixed", "float32"])
@pytest.mark.parametrize("shape", [tiny.Shape(), tiny.BITNET])
def test_records_hold_only_what_their_ops_have(tmp_path: Path, shape: tiny.Shape, compute: Compute) -> None:
    package = open_package(tiny.make(tmp_path, shape))
    tape = encode(package.program, package.tensor, n_threads=2, compute=compute, cache="f16", max_rows=4)
    for op in tape.ops:
        assert {*np.flatnonzero(op).tolist()} <= {*Op(op[Head.CODE]).fields.values()}

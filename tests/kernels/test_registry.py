"""The registry of ops: every entry is whole, and a record holds what its op has."""

from __future__ import annotations

from enum import IntEnum
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations

import numpy as np
import pytest

from edgerun_kernels import layouts, reference
from edgerun_kernels.layouts import RECORD_FIELDS, Head, Linear, Varied
from edgerun_kernels.registry import Op, by_format, put, record

from .harness import ISAS, loaded

every_op = pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
WITHOUT_TWIN = {
    Op.GATHER_COLUMNS,  # the second half of a layer
    Op.GATHER_ATTENTION,
    Op.SKIP_COLUMNS,  # what its layers join
    Op.SELECT_PAGES,  # their twins are in the tests of the policies
    Op.COMPACT_F16,
    Op.COMPACT_F32,
    Op.COMPACT_Q8,
    Op.READ_MEMORY,
}


@every_op
def test_a_kernel_a_layout_a_kind_and_a_twin(op: Op) -> None:
    loaded(ISAS[0]).op(op.kernel)
    if find_spec("numba") is not None:  # an emulated processor has what is compiled, and no compiler
        assert getattr(import_module(f"edgerun_kernels.{op.entry.module}"), op.kernel) is not None
    assert op.entry.layout[0] is Head
    assert op.entry.kind or op.has(Linear), "the profile has no name for it"
    assert (op.entry.twin == "") == (op in WITHOUT_TWIN)
    assert not op.entry.twin or callable(getattr(reference, op.entry.twin))


@every_op
def test_no_place_of_a_record_has_two_meanings(op: Op) -> None:
    places = list(op.fields.values())
    assert len(set(places)) == len(places) and max(places) < RECORD_FIELDS
    names = [field.name for part in op.entry.layout for field in part if field.name != "COUNT"]
    assert len(set(names)) == len(names)


def test_every_part_is_some_ops() -> None:
    parts = {part for part in vars(layouts).values() if isinstance(part, type) and issubclass(part, IntEnum)}
    assert parts - {IntEnum} == {part for op in Op for part in op.entry.layout}


@every_op
def test_variants_act_where_there_is_a_place_for_it(op: Op) -> None:
    """Norms look themselves for what variants make of their weights."""
    assert bool(op.entry.variants) == (op.has(Varied) and op != Op.RMS_NORM)
    assert (op.entry.variants == "variant_linear") == op.has(Linear)


def test_one_op_a_role_and_format() -> None:
    for one, other in combinations(Op, 2):
        assert (
            one.entry.role is None
            or one.entry.role != other.entry.role
            or not {*one.entry.formats} & {*other.entry.formats}
        )
    assert by_format("linear")["q4m"] is Op.LINEAR_Q4


def test_a_record_has_its_ops_fields_alone() -> None:
    made = record(Op.RMS_NORM, K=64, X=8)
    put(made, BARRIER=2)
    assert made.dtype == np.int64 and made.shape == (RECORD_FIELDS,)
    assert {i: int(value) for i, value in enumerate(made) if value} == {
        Head.CODE: Op.RMS_NORM,
        Head.BARRIER: 2,
        Head.X: 8,
        layouts.Input.K: 64,
    }
    with pytest.raises(KeyError, match=r"SWIGLU has no field K; it has CODE, .*, UP, N"):
        record(Op.SWIGLU, K=64)
    with pytest.raises(KeyError, match="RMS_NORM has no field PROJECTION"):
        put(made, PROJECTION=1)

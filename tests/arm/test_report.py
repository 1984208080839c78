"""The hot loops on ARM, by llvm-mca: memory-bound where they must be, and not a tenth worse than in the table."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from benchmarks.arm import report
from benchmarks.arm.loops import LOOPS, PROCESSORS, Loop, Processor, iteration
from tests.kernels.elf import emitted, target


def assembly(processor: Processor) -> str:
    return emitted(target(processor.isa))[1]


@cache
def table() -> dict[str, Any]:
    mca, version = report.llvm_mca()
    return report.measure(mca, version, {p.isa: assembly(p) for p in PROCESSORS})


@pytest.fixture
def now() -> dict[str, Any]:
    try:
        return table()
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture
def before() -> dict[str, Any]:
    return json.loads(report.TABLE.read_text())


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: p.name)
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)
def test_every_loop_has_its_instruction(processor: Processor, loop: Loop) -> None:
    assert iteration(assembly(processor), loop, processor.instruction(loop))


def test_a_lost_instruction_is_noticed() -> None:
    processor = next(p for p in PROCESSORS if p.one_row == "sdot")
    with pytest.raises(ValueError, match="the loop 'q4 decode' has lost its sdot"):
        iteration(assembly(processor).replace("\tsdot\t", "\tusdot\t"), LOOPS[0], "sdot")


def test_no_loop_got_worse(now: dict[str, Any], before: dict[str, Any]) -> None:
    if now["llvm_mca"] != before["llvm_mca"]:
        pytest.skip(f"the table is of llvm-mca {before['llvm_mca']}, here is {now['llvm_mca']}")
    assert report.worse(before, now) == []
    half = {
        "loops": [row | {"cycles_per_weight_and_row": row["cycles_per_weight_and_row"] / 2} for row in now["loops"]]
    }
    assert len(report.worse(half, now)) == len(now["loops"])


def test_decoding_waits_for_memory(before: dict[str, Any]) -> None:
    """On a Pi 5 at what its memory allows; without a dot product, at most 2.5 times what the Pi 5's loop takes."""
    loops = {(row["processor"], row["loop"]): row for row in before["loops"]}
    for loop in ("q4 decode", "q4 with minima decode", "ternary decode"):
        for processor in PROCESSORS:
            row = loops[processor.name, loop]
            assert row["cycles_per_weight_and_row"] <= row["cycles_that_memory_allows"]
        slow, fast = (loops[name, loop]["cycles_per_weight_and_row"] for name in ("cortex-a72", "cortex-a76"))
        assert slow <= 2.5 * fast


def test_the_text_is_that_of_the_table(before: dict[str, Any]) -> None:
    assert report.TEXT.read_text() == report.text(before)

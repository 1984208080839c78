"""The hot loops of linear layers in an ARM object: which they are, and what each costs on a processor by llvm-mca.

A loop is known by what it does for a group of 32 columns: products, conversions of scales and of sums, prefetches.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from typing import NamedTuple

from benchmarks.arm.trace import mnemonic, traces

ITERATIONS = 200
PRODUCTS = {"smull": 8, "smull2": 8, "sdot": 16, "usdot": 16, "usmmla": 32}
"""Of an instruction."""


class Loop(NamedTuple):
    """One iteration: ``columns`` x ``weights`` products; ``halves``: registers of scales (or minima) converted from
    float16; ``sums``: registers of sums converted to float32, none where they go on as integers."""

    name: str
    weights: int
    rows: int
    bytes_per_weight: float
    halves: int
    sums: int
    prefetches: int


LOOPS = (
    Loop("q4 decode", 512, 1, 288 / 512, 4, 4, 0),
    Loop("q4 with minima decode", 512, 1, 320 / 512, 8, 4, 6),
    Loop("ternary decode", 512, 1, 128 / 512, 0, 0, 0),
    Loop("q4 prefill, 4 rows", 256, 4, 288 / 512, 2, 8, 5),
    Loop("q4 with minima prefill, 4 rows", 256, 4, 320 / 512, 4, 8, 6),
    Loop("ternary prefill, 4 rows", 256, 4, 128 / 512, 0, 0, 2),
)


class Processor(NamedTuple):
    """``model``: what llvm-mca has of it; what multiplies one row of activations, and several; a board with one, and
    what its memory gives to all cores together."""

    name: str
    model: str
    isa: str
    one_row: str
    rows: str
    board: str
    cores: int
    ghz: float
    gb_per_s: float

    def instruction(self, loop: Loop) -> str:
        return self.one_row if loop.rows == 1 else self.rows

    def allowed(self, loop: Loop) -> float:
        """Cycles a weight that a core may take while all of them read weights at the memory's speed."""
        return self.cores * self.ghz / (self.gb_per_s / loop.bytes_per_weight)


PROCESSORS = (
    Processor("cortex-a72", "cortex-a72", "neon", "smull", "smull", "Pi 4", 4, 1.8, 5.0),
    Processor("cortex-a76", "neoverse-n1", "neon_dotprod", "sdot", "sdot", "Pi 5", 4, 2.4, 13.0),
    Processor("cortex-a76, LLVM's own model", "cortex-a76", "neon_dotprod", "sdot", "sdot", "Pi 5", 4, 2.4, 13.0),
    Processor("neoverse-v1", "neoverse-v1", "neon_i8mm", "usdot", "usmmla", "Graviton 3", 64, 2.6, 300.0),
)


def iteration(assembly: str, loop: Loop, instruction: str) -> list[str]:
    """The instructions of one iteration, the shortest way; those of the branches left out. Raises ValueError."""
    products = loop.weights * loop.rows
    found = []
    for trace in traces(assembly):
        count = Counter(map(mnemonic, trace))
        halves, sums = count["fcvtl"] + count["fcvtl2"], count["scvtf"]
        multiplied = sum(n * PRODUCTS.get(name, 0) for name, n in count.items())
        if (multiplied, halves, sums, count["prfm"]) == (products, loop.halves, loop.sums, loop.prefetches):
            found.append(trace)
    if not found:
        raise ValueError(f"no loop '{loop.name}' of {products} products is in the assembly")
    found = [trace for trace in found if any(mnemonic(line).startswith(instruction) for line in trace)]
    if not found:
        raise ValueError(f"the loop '{loop.name}' has lost its {instruction}")
    best = min(found, key=len)
    return [line for line in best if not re.match(r"(b|bl|ret|b\.\w+|cbn?z|tbn?z)\b", line)]


def cycles(mca: str, model: str, instructions: list[str]) -> float:
    """Of one iteration, where all that is read lies in the first cache."""
    command = [mca, "-mtriple=aarch64", f"-mcpu={model}", "-mattr=+dotprod,+i8mm", f"-iterations={ITERATIONS}"]
    result = subprocess.run(command, input="\n".join(instructions), capture_output=True, text=True, check=True)
    total = re.search(r"Total Cycles:\s+(\d+)", result.stdout)
    assert total is not None
    return int(total[1]) / ITERATIONS

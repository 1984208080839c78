"""What the hot loops cost on ARM processors, seen from any machine: llvm-mca on the code that is emitted for them.

python -m benchmarks.arm.report            # writes benchmarks/arm.json and arm.md
python -m benchmarks.arm.report --check    # fails where a loop is 10 % worse than arm.json, or has lost its instruction
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.arm.loops import LOOPS, PROCESSORS, cycles, iteration
from edgerun_kernels.build import emit, objects
from edgerun_kernels.targets import TARGETS

ROOT = Path(__file__).parents[2]
TABLE, TEXT = ROOT / "benchmarks" / "arm.json", ROOT / "benchmarks" / "arm.md"
WORSE = 1.10


def llvm_mca() -> tuple[str, str]:
    """The command and its version. Raises OSError with a line that says why there is none."""
    found = subprocess.run(["sh", str(ROOT / ".ci" / "mca.sh")], capture_output=True, text=True)
    if found.returncode != 0:
        raise OSError(found.stderr.strip().splitlines()[-1])
    command = found.stdout.strip().splitlines()[-1]
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r"version (\d+)", version)
    assert number is not None
    return command, number[1]


def assemblies() -> dict[str, str]:
    """Of the ARM objects, emitted now. Raises OSError."""
    packed = objects.read(objects.INSTALLED / objects.PORTABLE)
    if packed is None:
        raise OSError("edgerun: the kernels are not built; run 'python -m edgerun_kernels.build --native'")
    bitcode = objects.decompress(packed)
    return {t.name: emit.emit(t, bitcode, True)[1] for t in TARGETS if t.architecture == "aarch64"}


def measure(mca: str, version: str, texts: dict[str, str]) -> dict[str, Any]:
    """The table. Raises ValueError where a loop or its instruction is missing."""
    rows = []
    for processor in PROCESSORS:
        for loop in LOOPS:
            instructions = iteration(texts[processor.isa], loop, processor.instruction(loop))
            cost = cycles(mca, processor.model, instructions) / (loop.weights * loop.rows)
            row = {"processor": processor.name, "model": processor.model, "isa": processor.isa}
            row |= {"instruction": processor.instruction(loop), "loop": loop.name, "instructions": len(instructions)}
            row |= {"cycles_per_weight_and_row": round(cost, 4)}
            if loop.rows == 1:
                row |= {"board": processor.board, "cycles_that_memory_allows": round(processor.allowed(loop), 3)}
            rows.append(row)
    return {"llvm_mca": version, "loops": rows}


def worse(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for every loop that costs more than a tenth more than before."""
    before = {(row["processor"], row["loop"]): row["cycles_per_weight_and_row"] for row in old["loops"]}
    return [
        f"{row['processor']}, {row['loop']}: {row['cycles_per_weight_and_row']} cycles, it was {was}"
        for row in new["loops"]
        if (was := before.get((row["processor"], row["loop"]))) and row["cycles_per_weight_and_row"] > was * WORSE
    ]


def text(table: dict[str, Any]) -> str:
    lines = [
        "# The hot loops on ARM, estimated",
        "",
        f"Cycles for each weight and row of activations by llvm-mca {table['llvm_mca']}, all data in the cache, on",
        "the code that is emitted; not measured on a board. *Allowed*: what a core may take while all cores of a board",
        "together read weights as fast as its memory gives them: below it, decoding waits for memory. Written by",
        "`make arm-report`; `make test` fails where a loop is more than 10 % worse. How it is done, and what the",
        "numbers do not say: [arm/README.md](arm/README.md).",
        "",
    ]
    for board in dict.fromkeys((p.board, p.cores, p.ghz, p.gb_per_s) for p in PROCESSORS):
        lines.append("- {}: {} cores at {} GHz, {} GB/s (assumed)".format(*board))
    lines += ["", "| processor | kernels | loop | cycles | allowed | share |", "|---|---|---|---|---|---|"]
    for row in table["loops"]:
        cost, allowed = row["cycles_per_weight_and_row"], row.get("cycles_that_memory_allows")
        bound = f"{allowed:.2f} | {cost / allowed:.0%}" if allowed else "| "
        kernels = f"{row['isa']} (`{row['instruction']}`)"
        lines.append(f"| {row['processor']} | {kernels} | {row['loop']} | {cost:.3f} | {bound} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arm.report", description="Estimates ARM's hot loops.")
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    check = parser.parse_args().check
    try:
        new = measure(*llvm_mca(), assemblies())
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    if not check:
        TABLE.write_text(json.dumps(new, indent=1) + "\n")
        TEXT.write_text(text(new))
        print(TEXT.read_text())
        return
    old = json.loads(TABLE.read_text())
    if old["llvm_mca"] != new["llvm_mca"]:
        raise SystemExit(f"edgerun: the table is of llvm-mca {old['llvm_mca']}, here is {new['llvm_mca']}")
    if lines := worse(old, new):
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()

"""Compiles the kernels ahead of time: Numba to portable bitcode once, then one object file per instruction set.

    python -m edgerun_kernels.build [--out DIR] [--isa NAME ...]

Needs numba; no C compiler, no linker. What is current (same sources) is not built again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..targets import TARGETS, usable
from . import emit, objects

DESCRIPTION = "Compiles the kernels ahead of time, one object file per instruction set."


def build(out: Path, isas: list[str] | None = None, assembly: bool = False) -> list[Path]:
    """Builds the bitcode and the objects of ``isas`` (default: all, of this machine's architecture and of others) into
    ``out``; gives the objects' paths.

    Current files stay as they are. assembly: builds all the same, and writes the assembly beside each object.
    """
    wanted = [t for t in TARGETS if not isas or t.name in isas]
    paths = {target.name: out / objects.file_name(target.name) for target in wanted}
    missing = [target for target in wanted if assembly or not objects.is_current(paths[target.name])]
    portable = out / objects.PORTABLE
    if not objects.is_current(portable):
        _say("compiling the kernels (about a minute)")
        from . import portable as numba_half

        numba_half.build(portable)
    packed = objects.read(portable)
    assert packed is not None
    for target in missing:
        _say(f"compiling the kernels for {target.name} (about 10 s)")
        emit.build(out, target, objects.decompress(packed), assembly)
    return list(paths.values())


def _say(what: str) -> None:
    print(f"edgerun: {what}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edgerun_kernels.build", description=DESCRIPTION)
    parser.add_argument("--out", type=Path, default=objects.INSTALLED, help="folder for bitcode and objects")
    names = [target.name for target in TARGETS]
    parser.add_argument("--isa", action="append", choices=names, help="only this instruction set (repeatable)")
    parser.add_argument("--native", action="store_true", help="only the best instruction set of this processor")
    parser.add_argument("--assembly", action="store_true", help="also write the assembly beside each object")
    args = parser.parse_args()
    if args.native:
        args.isa = [target.name for target in usable()[:1]]
    build(args.out, args.isa, args.assembly)


if __name__ == "__main__":
    main()

"""What skipping columns gains: single layers of larger models' shapes, and decoding a model.

    python benchmarks/sparsity_speed.py layers [--format q4] [--threads 1,2] [--skip 0,0.3,0.5,0.7] [--json]
    python benchmarks/sparsity_speed.py decode MODEL SPEC ... [--all-columns] [--threads 1,2] [--json]

Layers: random weights, as many copies of a matrix as are larger than any cache, run one after the other; inputs whose
zeros are drawn for every copy anew. Dense and sparse take turns, so that other programs disturb them alike; shown are
medians. Columns lie in mapped files, as they do for users. Decode: sessions take turns;
``threshold:keep=0.5`` makes inputs of any weights sparse, and what that costs is in its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import Model
from edgerun.package.layout import GROUP, ROWS, pack, unpack
from edgerun.program.encode import WHERE_SKIPPED
from edgerun.program.tape import Tape
from edgerun.sources.hub import resolve
from edgerun.sparsity import layout
from edgerun.sparsity.policy import LINES, most_columns, n_parts
from edgerun.sparsity.projections import TERNARY, Projection
from edgerun_kernels import reference
from edgerun_kernels.build.load import kernels
from edgerun_kernels.layouts import Head
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import Keep, Run, Skip, list_scratch_bytes, ternary_scratch_bytes
from edgerun_kernels.registry import Op, record
from edgerun_kernels.runtime.team import Team

LAYERS = {
    "2048x2048": ((2048,), 2048),
    "512x2048": ((512,), 2048),
    "8192x2048": ((8192,), 2048),
    "2048x8192": ((2048,), 8192),
    "q, k, v of 2048": ((2048, 512, 512), 2048),
    "gate, up of 8192x2048": ((8192, 8192), 2048),
    "2560x2560": ((2560,), 2560),
    "q, k, v of 2560": ((2560, 640, 640), 2560),
    "gate, up of 6912x2560": ((6912, 6912), 2560),
}
CODES = {"q4": Op.LINEAR_Q4, "q4m": Op.LINEAR_Q4, "q8": Op.LINEAR_Q8, "ternary": Op.LINEAR_TERNARY}
BYTES = 240 << 20


class Layers:
    """Copies of the layers of one input, dense and by column."""

    def __init__(self, fmt: str, rows: tuple[int, ...], k: int, folder: Path, limited: bool) -> None:
        rng = np.random.default_rng(0)
        self.projection = Projection("", "qkv", fmt, 0, tuple(range(len(rows))), rows, k)
        ternary = fmt in TERNARY
        low, high, dtype = (-128, 128, np.int8) if fmt == "q8" else (0, 3 if ternary else 16, np.uint8)
        stored = []
        for n in rows:
            d, m = rng.random((2, n, -(-k // GROUP))).astype(np.float16)
            d = np.ones(1, np.float32) if ternary else d
            stored.append(pack(fmt, rng.integers(low, high, (n, k)).astype(dtype), d, m if fmt == "q4m" else None))
        columns = {name: np.empty(p.shape, p.dtype) for name, p in layout.parts(fmt, rows, k).items()}
        layout.pack(fmt, [unpack(fmt, one, n, k) for one, n in zip(stored, rows, strict=True)], columns)
        self.bytes = sum(array.nbytes for one in stored for array in one.values())
        self.copies = max(2, BYTES // self.bytes)
        self.most = most_columns(self.projection) if limited else k
        self.stored = [[_mapped(one, folder / f"{i}.{j}") for j, one in enumerate(stored)] for i in range(self.copies)]
        self.columns = [_mapped(columns, folder / f"{i}.columns") for i in range(self.copies)]

    def tape(self, skip: float, n_threads: int, arena: int) -> tuple[Any, Any, list[Any]]:
        """The tape, the table with which its columns are skipped, and the inputs, which must live as long. arena: its
        address."""
        rng = np.random.default_rng(1)
        k, stack = self.projection.k, self.projection.stack
        ternary = self.projection.fmt in TERNARY
        private = -(-(ternary_scratch_bytes(stack, k) if ternary else list_scratch_bytes(k)) // 64) * 64
        table = aligned(8 * Skip.COUNT * (1 + self.copies)).view(np.int64).reshape(-1, Skip.COUNT)
        ops, inputs = [], []
        for i, (stored, columns) in enumerate(zip(self.stored, self.columns, strict=True), 1):
            values = rng.standard_normal((1, k)).astype(np.float32)
            values[0, rng.permutation(k)[: round(skip * k)]] = 0
            if ternary:
                made = reference.row_tiles(reference.quantize_rows(values))[0][0]
            else:
                made = reference.activation_tiles(reference.quantize(values))[0][0]
            tile = aligned(len(made))
            tile[:] = made
            inputs.append(tile)
            shared = {"X": _address(tile) - arena, "K": k, "PROJECTION": i}
            policy = {
                Skip.KEEP: Keep.NONZERO,
                Skip.LINES: LINES[self.projection.fmt],
                Skip.MOST: self.most,
                Skip.PARTS: n_parts(self.projection),
                Skip.STACK: stack,
                Skip.LISTS_PRIVATE: private,
                Skip.SUMS: private * n_threads,
            }
            for suffix, field in (("q", Skip.W), ("d", Skip.D), ("m", Skip.M)):
                policy[field] = _address(columns[suffix]) if suffix in columns else 0
            for field, value in policy.items():
                table[i, field] = value
            ops.append(_record(Op.SKIP_COLUMNS, {}, BARRIER=WHERE_SKIPPED, **shared))
            y = private * n_threads + 4 * n_parts(self.projection) * stack
            start = 0
            for one, n in zip(stored, self.projection.rows, strict=True):
                fields = shared | {"N": n, "Y": y + 4 * start, "START": start}
                ops.append(_record(CODES[self.projection.fmt], one, **fields))
                start += -(-n // ROWS) * ROWS
            ops[-1][Head.BARRIER] = 1
        return np.stack(ops), table, inputs

    def speeds(self, skip: float, n_threads: int, repeat: int) -> tuple[float, float]:
        """Seconds of the tape, dense and sparse."""
        room = aligned(64 << 20)
        tape, table, inputs = self.tape(skip, n_threads, _address(room))
        run = np.zeros(Run.COUNT, np.int64)
        run[Run.ARENA], run[Run.N_ROWS], run[Run.N_OUT] = _address(room), 1, 1
        times: dict[str, list[float]] = {"dense": [], "sparse": []}
        team = Team(kernels(), n_threads)
        try:
            for _ in range(repeat + 1):
                for name, policies in (("dense", 0), ("sparse", _address(table))):
                    run[Run.SPARSITY] = policies
                    start = time.perf_counter()
                    team.run(_address(tape), len(tape), _address(run))
                    times[name].append(time.perf_counter() - start)
        finally:
            team.close()
        del inputs
        return statistics.median(times["dense"][1:]), statistics.median(times["sparse"][1:])


def _address(array: Any) -> int:
    return int(array.ctypes.data)


def _mapped(arrays: dict[str, Any], path: Path) -> dict[str, Any]:
    found = {}
    for name, array in arrays.items():
        file = path.with_name(f"{path.name}.{name}")
        array.tofile(file)
        found[name] = np.memmap(file, array.dtype, "r", shape=array.shape)
    return found


def _record(code: Op, weights: dict[str, Any], **fields: int) -> Any:
    places = {
        field: _address(weights[suffix]) for suffix, field in (("q", "W"), ("d", "D"), ("m", "M")) if suffix in weights
    }
    return record(code, **places, **fields)


def layers(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for name in args.shapes or LAYERS:
        rows, k = LAYERS[name]
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            made = Layers(args.format, rows, k, Path(folder), args.limited)
            for threads in args.threads:
                for skip in args.skip:
                    dense, sparse = made.speeds(skip, threads, args.repeat)
                    speed = made.bytes * made.copies / dense / 1e9
                    line = {"layers": name, "format": args.format, "threads": threads, "skipped": skip}
                    found.append(line | {"dense_gb_per_s": speed, "speedup": dense / sparse})
                    if not args.json:
                        print(f"{name:22} {args.format} {threads} threads, {skip:.0%} skipped: dense {speed:.1f} GB/s, "
                              f"{dense / sparse:.2f} x", flush=True)  # fmt: skip
            del made
    return found


def _all_columns(tape: Tape) -> Tape:
    """A tape whose ternary layers that skip zeros by themselves take all columns: weights row by row would be as
    many bytes, so speed is right, and results are not."""
    ops, names = [], []
    for op, name in zip(tape.ops, tape.names, strict=True):
        changed = np.array(op)
        if op[Head.CODE] == Op.GATHER_COLUMNS:
            continue
        if op[Head.CODE] == Op.LINEAR_TERNARY_COLUMNS:
            changed[Head.CODE] = Op.LINEAR_TERNARY
        ops.append(changed)
        names.append(name)
    return replace(tape, ops=np.stack(ops), names=tuple(names), sites=())


def decode(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for threads in args.threads:
        with Model(resolve(args.model), threads=threads, context=512) as model:
            sessions = {spec: model.session(sparsity=spec) for spec in ("none", *args.specs)}
            if args.all_columns:
                sessions["none"].tape = _all_columns(model.tape)
            times: dict[str, list[float]] = {spec: [] for spec in sessions}
            text = (Path(__file__).parents[1] / "tests" / "data" / "prose.txt").read_text(encoding="utf-8")
            tokens = model.tokenizer.encode(text)[: 64 + args.tokens]
            for _ in range(args.repeat):
                for spec, session in sessions.items():
                    session.reset()
                    session.prefill(tokens[:64])
                    session.decode(tokens[64])
                    start = time.perf_counter()
                    for token in tokens[65:]:
                        session.decode(token)
                    times[spec].append((time.perf_counter() - start) / (args.tokens - 1))
        dense = statistics.median(times["none"])
        for spec, measured in times.items():
            seconds = statistics.median(measured)
            found.append(
                {"sparsity": spec, "threads": threads, "tokens_per_s": 1 / seconds, "speedup": dense / seconds}
            )
            if not args.json:
                print(f"{threads} threads, {spec}: {1 / seconds:.1f} tokens/s, {dense / seconds:.2f} x", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what skipping columns gains.")
    commands = parser.add_subparsers(required=True)
    for run in (layers, decode):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("--threads", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2])
        command.add_argument("--repeat", type=int, default=7 if run is layers else 30)
        command.add_argument("--json", action="store_true")
        if run is layers:
            command.add_argument("shapes", nargs="*", choices=[*LAYERS, []])
            command.add_argument("--format", choices=list(CODES), default="q4")
            command.add_argument(
                "--skip", type=lambda text: [float(p) for p in text.split(",")], default=[0.3, 0.5, 0.7]
            )
            command.add_argument("--folder", help="where the files of weights go")
            command.add_argument(
                "--limited", action="store_true", help="where columns do not pay, take all, as at decode"
            )
        else:
            command.add_argument("model")
            command.add_argument("specs", nargs="+", metavar="SPEC")
            command.add_argument("--tokens", type=int, default=64)
            command.add_argument(
                "--all-columns", action="store_true", help="compare with ternary layers that do not skip zeros either"
            )
    args = parser.parse_args()
    found = args.run(args)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

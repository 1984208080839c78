"""What variants cost at run time: decoding beside the base, swaps, the memory of twenty, a thousand swaps.

    python benchmarks/variant_speed.py [MODEL] [--threads 1,2] [--json]

Deltas are random, over every matrix and norm of the model: neither speed nor size depends on their values. DARE's mask
(one element of each window of 1 / (1 - p) columns) at p = 0.95 and 0.99, and as many elements at any place of a row, as
magnitude and WANDA choose them. Base and variants decode in turns, in parts of 16 tokens, so that other programs
disturb them alike; shown are medians.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgerun import Model
from edgerun.package.operators import EMBEDS, LINEARS
from edgerun.program.open import Package, open_package
from edgerun.sources.hub import resolve
from edgerun.variants.store import DenseDelta, SparseDelta, write_variant

KINDS = {"DARE p=0.95": (20, True), "DARE p=0.99": (100, True), "any p=0.95": (20, False), "any p=0.99": (100, False)}
PART = 16


def tensors(package: Package, keep_one_of: int, windows: bool, seed: int) -> Iterator[tuple[str, Any]]:
    rng = np.random.default_rng(seed)
    done = set()
    for node in package.graph.node:
        if node.op_type == "RMSNormalization":
            length = len(package.tensor(node.input[1]))
            yield node.input[1], DenseDelta(rng.normal(0, 1e-3, length).astype(np.float32))
        name = node.input[1].rpartition(".")[0] if node.op_type in (*EMBEDS, *LINEARS) else ""
        if not name or name in done:
            continue
        done.add(name)
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        yield name, sparse(sizes["N"], sizes["K"], keep_one_of, windows, rng)


def sparse(n: int, k: int, keep_one_of: int, windows: bool, rng: np.random.Generator) -> SparseDelta:
    steps = -(-k // keep_one_of)
    if windows:
        columns = rng.integers(0, keep_one_of, (n, steps)) + np.arange(steps) * keep_one_of
    else:
        steps = max(1, round(k / keep_one_of))
        columns = np.sort(rng.random((n, k), np.float32).argpartition(steps, axis=1)[:, :steps], axis=1)
    kept = columns < k
    values = rng.normal(0, 1e-4 * keep_one_of, int(kept.sum())).astype(np.float32)
    return SparseDelta((n, k), kept.sum(1).astype(np.int32), columns[kept].astype(np.int32), values)


def write(package: Package, path: Path, kind: str, seed: int = 0) -> Path:
    known = str(package.config.source["fingerprint"])
    keep_one_of, windows = KINDS[kind]
    write_variant(
        path, tensors(package, keep_one_of, windows, seed), base=known, method="random", parameters={"kind": kind}
    )
    return path


def decoding(folder: Path, files: dict[str, Path], threads: int, repeat: int) -> dict[str, float]:
    """Tokens per second, by kind; "base" is without a variant."""
    with Model(folder, threads=threads, context=512) as model:
        sessions = {"base": model.session(), **{kind: model.session(path) for kind, path in files.items()}}
        times: dict[str, list[float]] = {kind: [] for kind in sessions}
        tokens = np.random.default_rng(0).integers(0, model.vocab_size, 8 + PART).tolist()
        for _ in range(repeat):
            for kind, session in sessions.items():
                session.reset()
                session.prefill(tokens[:8])
                start = time.perf_counter()
                for token in tokens[8:]:
                    session.decode(token)
                times[kind].append(time.perf_counter() - start)
    return {kind: PART / statistics.median(spent) for kind, spent in times.items()}


def swapping(folder: Path, files: list[Path], swaps: int) -> dict[str, float]:
    with Model(folder, threads=1, context=512) as model:
        session = model.session()
        session.prefill(range(64))  # all of the base is in memory
        session.decode(1)
        first, later = [], []
        before = resident()
        for path in files:
            start = time.perf_counter()
            session.use(path)
            first.append(time.perf_counter() - start)
            session.decode(1)
        gc.collect()
        twenty = resident()
        for i in range(swaps):
            start = time.perf_counter()
            session.use(files[i % len(files)])
            later.append(time.perf_counter() - start)
        session.decode(1)
        gc.collect()
        return {
            "first_use_ms": 1e3 * max(first),
            "swap_median_ms": 1e3 * statistics.median(later),
            "swap_most_ms": 1e3 * max(later),
            "files": len(files),
            "files_mib": sum(path.stat().st_size for path in files) / 2**20,
            "added_rss_mib": (twenty["VmRSS"] - before["VmRSS"]) / 2**20,
            "added_private_mib": (twenty["RssAnon"] - before["RssAnon"]) / 2**20,
            "swaps": swaps,
            "added_by_swaps_mib": (resident()["RssAnon"] - twenty["RssAnon"]) / 2**20,
        }


def resident() -> dict[str, int]:
    """Bytes of memory by kind, as Linux counts them."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[0].startswith(("VmRSS", "Rss"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeat", type=int, default=40, help="parts of 16 tokens of each")
    parser.add_argument("--files", type=Path, help="folder to keep the variants in, or where they are from another run")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = resolve(args.model)
    package = open_package(folder)
    with tempfile.TemporaryDirectory() as scratch:
        place = args.files or Path(scratch)
        files = {kind: place / f"{kind.replace(' ', '-')}.safetensors" for kind in KINDS}
        twenty = [place / f"twenty-{i}.safetensors" for i in range(20)]
        for kind, path in files.items():
            path.exists() or write(package, path, kind)
        for i, path in enumerate(twenty):
            path.exists() or write(package, path, "DARE p=0.95" if i % 2 else "DARE p=0.99", i)
        report: dict[str, Any] = {
            "bytes": {kind: path.stat().st_size for kind, path in files.items()},
            "decode_tokens_per_s": {
                threads: decoding(folder, files, int(threads), args.repeat) for threads in args.threads.split(",")
            },
            "swapping": swapping(folder, twenty, 1000),
        }
    if args.json:
        print(json.dumps(report))
        return
    for threads, speeds in report["decode_tokens_per_s"].items():
        for kind, speed in speeds.items():
            print(f"{threads} threads  {kind:<12} {speed:7.1f} tokens/s  {speed / speeds['base']:.1%}")
    for name, size in report["bytes"].items():
        print(f"{name:<12} {size / 2**20:.2f} MiB")
    for name, value in report["swapping"].items():
        print(f"{name:<20} {value:.2f}")


if __name__ == "__main__":
    main()

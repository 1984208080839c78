"""Decoding speed of attention policies at a depth, of any package, without a prefill that would take an hour.

    python -m benchmarks.long_context PACKAGE --threads 1,2 --depth 8000,32000 --attention SPEC --attention SPEC ...

The cache is filled with keys and values that are made up: 30 % of the keys are new, the others near the one before, so
that DeltaLLM with theta=0.5 makes runs of them (70 % sparsity): speed only, with random weights too. Every policy takes
turns with exact attention in one process; ratios are of medians. Writes one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from statistics import median
from typing import Any

import numpy as np

import edgerun
from edgerun.session import Session
from edgerun_kernels import reference
from edgerun_kernels.layouts import Head
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import PAGE, Run
from edgerun_kernels.registry import Op

NEW, NEAR = 0.3, 0.02
"""The share of keys that are new, and how far the others are from the one before."""


def page_of(model: edgerun.Model) -> np.ndarray:
    """A page of the cache; all pages hold the same."""
    h, rng = model.heads, np.random.default_rng(0)
    shape = (h.n_layers * h.n_kv_heads, PAGE, h.head_dim)
    drawn = rng.standard_normal(shape, np.float32)
    new = rng.random(shape[:2]) < NEW
    new[:, 0] = True
    latest = np.maximum.accumulate(np.where(new, np.arange(PAGE), 0), 1)
    keys = np.take_along_axis(drawn, latest[..., None], 1) + NEAR * rng.standard_normal(shape, np.float32)
    return reference.pack_page(h.cache, keys, rng.standard_normal(shape, np.float32)).reshape(-1)


def filled(model: edgerun.Model, attention: str, tokens: list[int], page: np.ndarray) -> Session:
    """A session whose cache holds ``tokens``, and whose policies have made of it what they would have."""
    session = model.session(attention=attention)
    pages = []
    for _ in range(-(-len(tokens) // PAGE)):
        pages.append(aligned(page.nbytes))
        pages[-1][:] = page
    session.take(tokens, list(pages))
    state = session.state
    if state is not None and state.runs is not None:
        compact = (Op.COMPACT_F16, Op.COMPACT_F32, Op.COMPACT_Q8)
        ops = np.ascontiguousarray(session.model.tape.ops[np.isin(session.model.tape.ops[:, Head.CODE], compact)])
        table = np.array([page.ctypes.data for page in pages], np.int64)
        record = np.zeros(Run.COUNT, np.int64)
        record[Run.ARENA], record[Run.PAGES] = model._arena.ctypes.data, table.ctypes.data
        record[Run.ATTENTION], record[Run.N_ROWS] = state.records.ctypes.data, 1
        for position in range(0, len(tokens) + 1, 128):
            state.before(position, 0)
            model._team.run(int(ops.ctypes.data), len(ops), int(record.ctypes.data))
            state.after(position, 0)
    return session


def measure(package: str, threads: int, depth: int, specs: list[str], rounds: int, n: int) -> list[dict[str, Any]]:
    with edgerun.load(package, threads=threads, context=depth + n + 1) as model:
        tokens = np.random.default_rng(0).integers(0, model.vocab_size, depth + n).tolist()
        page = page_of(model)
        sessions = [filled(model, spec, tokens[:depth], page) for spec in ("full", *specs)]
        times: list[list[float]] = [[] for _ in sessions]
        for _, (session, took) in itertools.product(range(rounds), zip(sessions, times, strict=True)):
            session.decode(tokens[0])
            start = time.perf_counter()
            for token in tokens[depth : depth + n - 1]:
                session.decode(token)
            took.append((time.perf_counter() - start) / (n - 1))
            session.rewind(depth)
        exact = median(times[0])
        return [
            {
                "threads": threads,
                "depth": depth,
                "attention": spec,
                "decode_tokens_per_s": 1 / median(took),
                "against_exact": exact / median(took),
                "attention_sparsity": session.attended.sparsity,
                "runs_sparsity": session.runs.sparsity,
                "cache_bytes": session.cache_bytes[0],
                "policy_bytes": session.cache_bytes[1],
            }
            for spec, session, took in zip(("full", *specs), sessions, times, strict=True)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("package")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--depth", default="8000,32000")
    parser.add_argument("--attention", action="append", required=True, metavar="SPEC")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--gen", type=int, default=8)
    a = parser.parse_args()
    results = []
    for threads, depth in itertools.product(a.threads.split(","), a.depth.split(",")):
        for result in measure(a.package, int(threads), int(depth), a.attention, a.rounds, a.gen):
            results.append(result)
            print(
                f"{threads} threads, depth {depth}: {result['attention']:<50} {result['decode_tokens_per_s']:6.1f} "
                f"tokens/s, {result['against_exact']:.2f} x exact, sparsity {result['attention_sparsity']:.3f}",
                flush=True,
            )
    print(json.dumps({"package": a.package, "results": results}))


if __name__ == "__main__":
    main()

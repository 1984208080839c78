"""Speed beside llama.cpp: the same GGUF, the same threads, in turn; medians and their ratio.

    python tests/benchmarks/against_llama_cpp.py LLAMA_BENCH MODEL.gguf [--threads 1,2] [--prompt N] [--gen N]

LLAMA_BENCH is llama.cpp's program of that name. Every run is a process of its own on both sides; the pair of a run is
taken back to back, so that a machine that slows down slows both. Prints a table; --json prints one object instead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from typing import Any

KINDS = ("prefill", "decode")


def llama_cpp(args: argparse.Namespace, threads: int) -> dict[str, float]:
    command = [
        args.llama_bench,
        "-m",
        args.model,
        "-t",
        threads,
        "-p",
        args.prompt,
        "-n",
        args.gen,
        "-r",
        1,
        "-o",
        "json",
    ]
    rows = json.loads(_output(command))
    return {kind: next(r["avg_ts"] for r in rows if bool(r["n_gen"]) == (kind == "decode")) for kind in KINDS}


def edgerun(args: argparse.Namespace, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "edgerun", "bench", args.model, "--threads", threads, "--prompt", args.prompt]
    command += ["--gen", args.gen, "--depth", 0, "--repeat", 1, "--json"]
    result = json.loads(_output(command))["results"][0]
    return {kind: result[f"{kind}_tokens_per_s"] for kind in KINDS}


def _output(command: list[Any]) -> str:
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed beside llama.cpp, in turn.")
    parser.add_argument("llama_bench")
    parser.add_argument("model")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = []
    for threads in map(int, args.threads.split(",")):
        pairs = [(edgerun(args, threads), llama_cpp(args, threads)) for _ in range(args.runs)]
        for kind in KINDS:
            ours, theirs = (median(pair[side][kind] for pair in pairs) for side in (0, 1))
            report.append(
                {
                    "work": f"{kind} {args.prompt if kind == 'prefill' else args.gen}",
                    "threads": threads,
                    "edgerun_tokens_per_s": round(ours, 1),
                    "llama_cpp_tokens_per_s": round(theirs, 1),
                    "ratio": round(ours / theirs, 2),
                }
            )
    if args.json:
        print(json.dumps(report))
        return
    print("| work | threads | edgerun, tokens/s | llama.cpp, tokens/s | ratio |\n|---|---|---|---|---|")
    for row in report:
        print("|", " | ".join(str(value) for value in row.values()), "|")


if __name__ == "__main__":
    main()

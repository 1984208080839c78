"""Speed beside the other CPU runtimes: the same files, the same threads, one program after the other.

    python benchmarks/speed.py --llama-cpp DIR [--ik-llama-cpp DIR] [--openvino PYTHON] [--llama-1b FILE.gguf]
        [--bitnet-2b FILE.gguf] [--bitnet-2b-ik FILE.gguf]

DIR holds llama-bench and llama-completion; PYTHON is an interpreter with openvino-genai; the files have the shapes of
Llama-3.2-1B (Q4_0) and of BitNet-b1.58-2B-4T (TQ2_0, and IQ2_BN for ik_llama.cpp). A peer or a file that is not given
is left out, with a word. In every round each program runs once, as a process of its own, so that a machine that slows
down slows all; figures are medians of the rounds, ratios those of the medians. Prints a table; --json FILE also writes
everything that was measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

Measure = Callable[[int], float]
"""Runs a program once with so many threads."""
EDGERUN = [sys.executable, "-m", "edgerun"]
OPENVINO = """
import sys
import openvino_genai as genai
path, threads, prompt, gen = sys.argv[1], *map(int, sys.argv[2:])
pipe = genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
config = genai.GenerationConfig(max_new_tokens=gen or 2, ignore_eos=True, do_sample=False)
text = " ".join(["the sea is blue and"] * (prompt // 5)) if prompt else "Tell me a story about the sea."
pipe.generate(["A warm-up that shares no prefix with it."], config)
metrics = pipe.generate([text], config).perf_metrics
print(metrics.get_throughput().mean if gen else 1e3 * metrics.get_num_input_tokens() / metrics.get_ttft().mean)
"""


@dataclass(frozen=True)
class Work:
    """One row of the table for each number of threads: who does it, and in what unit."""

    name: str
    unit: str
    programs: dict[str, Measure]
    larger_is_better: bool = True
    slow: bool = False


@dataclass
class Row:
    work: str
    threads: int
    unit: str
    medians: dict[str, float]
    rounds: dict[str, list[float]]
    ratios: dict[str, float]
    """edgerun's speed over the peer's; of times and memory, the peer's figure over edgerun's."""


def output(command: list[Any], **options: Any) -> str:
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def edgerun(model: Path | str, kind: str, prompt: int, gen: int, depth: int = 0) -> Measure:
    def measure(threads: int) -> float:
        command = [*EDGERUN, "bench", model, "--threads", threads, "--prompt", prompt, "--gen", gen]
        report = json.loads(output([*command, "--depth", depth, "--repeat", 1, "--json"]))
        return float(report["results"][0][f"{kind}_tokens_per_s"])

    return measure


def llama_bench(folder: Path, model: Path, prompt: int, gen: int, depth: int = 0, both: bool = False) -> Measure:
    """both: the better of with and without flash attention."""

    def measure(threads: int) -> float:
        command = [folder / "llama-bench", "-m", model, "-t", threads, "-p", prompt, "-n", gen, "-r", 1, "-o", "json"]
        command += ["-d", depth] if depth else []
        variants = [[*command, "-fa", fa] for fa in (0, 1)] if both else [command]
        return max(float(json.loads(output(variant, stderr=subprocess.DEVNULL))[0]["avg_ts"]) for variant in variants)

    return measure


def openvino(python: Path, model: Path, prompt: int, gen: int) -> Measure:
    return lambda threads: float(output([python, "-c", OPENVINO, model, threads, prompt, gen]).split()[-1])


def process(command: list[Any], figure: str) -> Measure:
    """A whole process: seconds, or MiB of peak memory."""

    def measure(threads: int) -> float:
        start = time.perf_counter()
        filled = [str(threads if part == "THREADS" else part) for part in command]
        child = subprocess.Popen(filled, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, filled)
        return usage.ru_maxrss / 1024 if figure == "MiB" else time.perf_counter() - start

    return measure


def forget(files: Iterable[Path | None]) -> None:
    """Takes files out of the system's cache, as after a start of the machine, so that every program finds them in the
    pages that it asks for itself, not in those that they were written by."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        if file is not None:
            with file.open("rb") as opened:
                os.fsync(opened)
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a fresh process: this one stays small, for a child's peak memory begins at its parent's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def rows_at_once(model: Path | str, rows: int) -> Measure:
    """Milliseconds to run so many drafted tokens at once, with logits for each, behind 64 others."""
    return lambda threads: float(in_child(_rows_at_once, model, rows, threads))


def _rows_at_once(model: Path | str, rows: int, threads: int) -> float:
    import edgerun

    times = []
    with edgerun.load(model, threads=threads, context=512) as loaded:
        session = loaded.session()
        session.prefill(range(100, 164))
        for _ in range(20):
            start = time.perf_counter()
            for _ in session.score(range(200, 200 + rows), chunk=rows):
                pass
            times.append(time.perf_counter() - start)
            session.rewind(64)
    return median(times) * 1e3


@contextmanager
def busy_core() -> Iterator[None]:
    """One process that computes for nothing."""
    other = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    other.start()
    try:
        yield
    finally:
        other.kill()


def _spin() -> None:
    while True:
        pass


def oversubscribed(model: Path | str, times: int, beside: bool) -> Measure:
    """Decode with ``times`` as many threads as the work's own, beside a busy core or not."""
    decode = edgerun(model, "decode", 16, 128)

    def measure(threads: int) -> float:
        if not beside:
            return decode(times * threads)
        with busy_core():
            return decode(times * threads)

    return measure


def best_beside(model: Path | str) -> Measure:
    """The best that any number of threads decodes beside a busy core."""
    return lambda threads: max(oversubscribed(model, 1, True)(count) for count in range(1, threads + 1))


def all_works(args: argparse.Namespace) -> Iterator[Work]:
    small, small_gguf, one_b = args.package, args.gguf, args.llama_1b

    def peers(model: Path | None, prompt: int, gen: int, depth: int = 0, both: bool = False) -> dict[str, Measure]:
        assert model is not None
        found = {"llama.cpp": llama_bench(args.llama_cpp, model, prompt, gen, depth, both)} if args.llama_cpp else {}
        if args.ik_llama_cpp and not depth and not both:
            found["ik_llama.cpp"] = llama_bench(args.ik_llama_cpp, model, prompt, gen)
        if args.openvino and not depth and not both and model == small_gguf:
            found["OpenVINO"] = openvino(args.openvino, model, prompt, gen)
        return found

    def ours(model: Any, kind: str, prompt: int, gen: int, depth: int = 0) -> dict[str, Measure]:
        return {"edgerun": edgerun(model, kind, prompt, gen, depth)}

    speed = "tokens/s"
    yield Work("decode 128", speed, ours(small, "decode", 16, 128) | peers(small_gguf, 0, 128))
    yield Work("prefill 512", speed, ours(small, "prefill", 512, 1) | peers(small_gguf, 512, 0))
    yield Work(
        "prefill 4096", speed, ours(small, "prefill", 4096, 1) | peers(small_gguf, 4096, 0, both=True), slow=True
    )
    for depth in (2048, 8000):
        deep = ours(small, "decode", 1, 32, depth) | peers(small_gguf, 0, 32, depth, both=True)
        yield Work(f"decode 32 after {depth}", speed, deep, slow=True)
    if one_b:
        yield Work("1B: decode 32", speed, ours(args.package_1b, "decode", 16, 32) | peers(one_b, 0, 32))
        yield Work("1B: prefill 256", speed, ours(args.package_1b, "prefill", 256, 1) | peers(one_b, 256, 0))
    if args.bitnet_2b:
        for name, kind, prompt, gen in (("decode 32", "decode", 0, 32), ("prefill 128", "prefill", 128, 0)):
            programs = ours(args.package_2b, kind, prompt or 16, gen or 1)
            if args.llama_cpp:
                programs["llama.cpp"] = llama_bench(args.llama_cpp, args.bitnet_2b, prompt, gen)
            if args.ik_llama_cpp and args.bitnet_2b_ik:
                programs["ik_llama.cpp"] = llama_bench(args.ik_llama_cpp, args.bitnet_2b_ik, prompt, gen)
            yield Work(f"BitNet 2B: {name}", speed, programs)
    files = (
        ("", small, small_gguf),
        ("1B: ", args.package_1b, one_b),
        ("BitNet 2B: ", args.package_2b, args.bitnet_2b),
    )
    for name, package, gguf in files:
        if package is None:
            continue
        rows = {"edgerun": rows_at_once(package, 4), "one row": rows_at_once(package, 1)}
        yield Work(f"{name}4 rows at once", "ms", rows, larger_is_better=False)
        own = [*EDGERUN, "run", package, "Hello", "-n", 1, "--ctx", 2048, "--temperature", 0, "--threads", "THREADS"]
        for unit in ("s", "MiB"):
            programs = {"edgerun": process(own, unit)}
            if args.llama_cpp and (args.llama_cpp / "llama-completion").exists():
                theirs = [args.llama_cpp / "llama-completion", "-m", gguf, "-p", "Hello", "-n", 1, "-c", 2048]
                programs["llama.cpp"] = process([*theirs, "-t", "THREADS", "-no-cnv", "--temp", 0], unit)
            what = "process to first token" if unit == "s" else "peak memory of that"
            yield Work(name + what, unit, programs, larger_is_better=False)
    if args.most_threads > 1:
        over = {"edgerun": oversubscribed(small, 2, False), "one a core": oversubscribed(small, 1, False)}
        yield Work("decode, twice the threads", speed, over)
        beside = {"edgerun": oversubscribed(small, 1, True), "best there": best_beside(small)}
        yield Work("decode beside a busy core", speed, beside)
        both = {"edgerun": oversubscribed(small, 2, True), "best there": best_beside(small)}
        yield Work("decode, both", speed, both)


def measure(work: Work, threads: int, rounds: int) -> Row:
    taken: dict[str, list[float]] = {name: [] for name in work.programs}
    for i in range(rounds):
        for name, program in work.programs.items():
            print(f"\r\033[K{work.name}, {threads} threads: round {i + 1}, {name}", end="", file=sys.stderr, flush=True)
            taken[name].append(program(threads))
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    medians = {name: median(values) for name, values in taken.items()}
    ours = medians["edgerun"]
    ratios = {n: ours / m if work.larger_is_better else m / ours for n, m in medians.items() if n != "edgerun"}
    return Row(work.name, threads, work.unit, medians, taken, ratios)


def machine() -> dict[str, Any]:
    from edgerun.measure.benchmark import memory_read_gb_per_s
    from edgerun_kernels.build.load import kernels

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = os.cpu_count() or 1
    return {
        "date": date.today().isoformat(),
        "processor": name,
        "cores": cores,
        "instruction_set": kernels().isa,
        "memory_read_gb_per_s": {n: round(memory_read_gb_per_s(n), 1) for n in sorted({1, cores})},
    }


def table(rows: list[Row]) -> Iterator[str]:
    yield "| work | threads | edgerun | beside | ratio |\n|---|---|---|---|---|"
    for row in rows:
        digits = 1 if row.unit != "s" else 2
        beside = ", ".join(f"{n} {m:.{digits}f}" for n, m in row.medians.items() if n != "edgerun") or "–"
        ratios = ", ".join(f"{ratio:.2f}" for ratio in row.ratios.values()) or "–"
        yield f"| {row.work} | {row.threads} | {row.medians['edgerun']:.{digits}f} {row.unit} | {beside} | {ratios} |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed beside the other CPU runtimes, in turn.")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="where llama-bench and llama-completion are")
    parser.add_argument("--ik-llama-cpp", type=Path, metavar="DIR", help="where ik_llama.cpp's llama-bench is")
    parser.add_argument("--openvino", type=Path, metavar="PYTHON", help="an interpreter with openvino-genai")
    parser.add_argument("--llama-1b", type=Path, metavar="FILE", help="a GGUF file in the shape of Llama-3.2-1B, Q4_0")
    parser.add_argument("--bitnet-2b", type=Path, metavar="FILE", help="one in the shape of BitNet-b1.58-2B-4T, TQ2_0")
    parser.add_argument("--bitnet-2b-ik", type=Path, metavar="FILE", help="the same in IQ2_BN, for ik_llama.cpp")
    parser.add_argument("--threads", default=None, metavar="N,…", help="default: 1 and one a core")
    parser.add_argument(
        "--bitnet-2b-package", type=Path, metavar="DIR", help="run it instead of an export of the file: a compact one"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5; slow works take a third of them")
    parser.add_argument("--only", action="append", metavar="TEXT", help="works whose name contains it (repeatable)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
    return parser.parse_args()


def main() -> None:
    from edgerun.sources.catalog import CATALOGUE, fetch
    from edgerun.sources.hub import resolve

    args = parse()
    for option, given in (("--llama-cpp", args.llama_cpp), ("--ik-llama-cpp", args.ik_llama_cpp)):
        if given and not (given / "llama-bench").exists():
            sys.exit(f"{option}: there is no llama-bench in {given}")
    for option in ("llama_cpp", "ik_llama_cpp", "openvino", "llama_1b", "bitnet_2b", "bitnet_2b_ik"):
        if getattr(args, option) is None:
            print(f"--{option.replace('_', '-')} is not given: left out", file=sys.stderr)
    args.gguf, args.package = fetch(CATALOGUE["smollm2"]), resolve("smollm2")
    args.package_1b = resolve(str(args.llama_1b)) if args.llama_1b else None
    args.package_2b = args.bitnet_2b_package or (resolve(str(args.bitnet_2b)) if args.bitnet_2b else None)
    cores = os.cpu_count() or 1
    counts = [int(n) for n in args.threads.split(",")] if args.threads else sorted({1, cores})
    args.most_threads = max(counts)
    here = in_child(machine)
    packages = [Path(package) for package in (args.package, args.package_1b, args.package_2b) if package]
    ours = [package / "model.onnx.data" for package in packages]
    forget([*ours, args.gguf, args.llama_1b, args.bitnet_2b, args.bitnet_2b_ik])
    rows: list[Row] = []
    for work in all_works(args):
        if args.only and not any(text in work.name for text in args.only):
            continue
        shared = "busy core" in work.name or work.name.startswith(("decode, ",))
        for threads in counts[-1:] if shared else counts:
            rows.append(measure(work, threads, max(1, args.rounds // 3) if work.slow else args.rounds))
            if args.json:
                args.json.write_text(json.dumps({"machine": here, "rows": [asdict(row) for row in rows]}, indent=1))
    print(f"{here}\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

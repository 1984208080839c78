"""What the engine must show: sequences together, shared prompts, a prompt beside others' decoding, many short texts.

    python -m benchmarks.engine [MODEL] [--threads 1,2] [--llama-cpp DIR --gguf FILE] [--rounds 3] [--only NAME,…]

Every figure is a median of rounds, in which all that is compared takes turns. DIR/bin/llama-batched-bench is
llama.cpp's, run on FILE beside ours.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.variant_speed import write
from edgerun import Model, Session
from edgerun.sources.hub import resolve

GREEDY = {"temperature": 0, "ignore_eos": True}
DECODED = 48


def together(sessions: list[Session], tokens: list[int]) -> float:
    """Tokens per second of all, a token of each in every run."""
    runner, sequences = sessions[0].model.runner, [session.sequence for session in sessions]
    logits = np.empty((len(sequences), runner.tape.logits_stride), np.float32)
    start = time.perf_counter()
    for i in range(len(tokens)):
        parts = [[tokens[(i + j) % len(tokens)]] for j in range(len(sequences))]
        runner.run([s.begin(part, 1, decodes=True) for s, part in zip(sequences, parts, strict=True)], logits)
        for sequence, part in zip(sequences, parts, strict=True):
            sequence.done(part)
    return len(tokens) * len(sequences) / (time.perf_counter() - start)


def batches(model: Model, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Tokens per second of 1, 4, 8, 16 sequences, and llama.cpp's."""
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, 16 + DECODED).tolist()
    speeds: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for n in (1, 4, 8, 16):
            sessions = [model.session() for _ in range(n)]
            for session in sessions:
                session.prefill(tokens[:16])
            speeds.setdefault(f"{n} together", []).append(together(sessions, tokens[16:]))
        if args.llama_cpp:
            for n, speed in llama(args, model.threads).items():
                speeds.setdefault(f"llama.cpp, {n}", []).append(speed)
    found = {name: statistics.median(values) for name, values in speeds.items()}
    yield from ((f"{name}, tokens/s", value) for name, value in found.items())
    for n in (4, 8, 16):
        yield f"{n} together over one", found[f"{n} together"] / found["1 together"]
        if args.llama_cpp:
            yield f"{n} together over llama.cpp's {n}", found[f"{n} together"] / found[f"llama.cpp, {n}"]


def llama(args: argparse.Namespace, threads: int) -> dict[int, float]:
    command = [f"{args.llama_cpp}/bin/llama-batched-bench", "-m", args.gguf, "-c", "4096", "-npp", "16"]
    command += ["-ntg", str(DECODED), "-npl", "1,4,8,16", "-t", str(threads), "--output-format", "jsonl"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {row["pl"]: row["speed_tg"] for row in rows}


def variants(model: Model, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Eight sequences with eight variants (DARE, p = 0.99) over eight without."""
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, 16 + DECODED).tolist()
    with tempfile.TemporaryDirectory() as folder:
        files = [write(model.package, Path(folder) / f"{i}.safetensors", "DARE p=0.99", i) for i in range(8)]
        ratios = []
        for _ in range(2 * args.rounds):
            speeds = []
            for specs in (["none"] * 8, [str(file) for file in files]):
                sessions = [model.session(spec) for spec in specs]
                for session in sessions:
                    session.prefill(tokens[:16])
                speeds.append(together(sessions, tokens[16:]))
            ratios.append(speeds[1] / speeds[0])
        yield "8 variants over none", statistics.median(ratios)


def shared_prompt(model: Model, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """A second request with the same 2,000 tokens: time to its first token over the first one's."""
    firsts, seconds = [], []
    for i in range(args.rounds):
        prompt = np.random.default_rng(i).integers(0, model.vocab_size, 2000).tolist()
        held = []
        for times in (firsts, seconds):
            held.append(model.session())
            start = time.perf_counter()
            next(held[-1].generate(prompt, max_tokens=1, **GREEDY), None)
            times.append(time.perf_counter() - start)
        pages = {id(page) for session in held for page in session.sequence.pages}
        yield f"distinct pages of both ({i})", len(pages)
        del held
        model.kv_cache.prefixes.clear()
        gc.collect()
    yield "first token, first request, s", statistics.median(firsts)
    yield "first token, second request, s", statistics.median(seconds)
    yield "second over first", statistics.median(seconds) / statistics.median(firsts)


def beside(model: Model, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """While a prompt of 4,000 tokens is read: the time between the tokens of 4 others, and the prompt's own."""
    rng = np.random.default_rng(1)
    for number in range(args.rounds):
        prompt = rng.integers(0, model.vocab_size, 4000).tolist()
        start = time.perf_counter()
        next(model.session().generate(prompt, max_tokens=1, **GREEDY), None)
        alone = time.perf_counter() - start
        model.kv_cache.prefixes.clear()
        before: list[float] = []
        gaps: list[float] = []
        reading = threading.Event()
        done = threading.Event()

        def decode(
            i: int, before: list[float] = before, gaps: list[float] = gaps, reading: Any = reading, done: Any = done
        ) -> None:
            generation = model.session().generate([i, 5, 6, 7], max_tokens=4000, logprobs=0, **GREEDY)
            last = None
            for _ in generation:
                now = time.perf_counter()
                if last is not None:
                    (gaps if reading.is_set() else before).append(now - last)
                last = now
                if done.is_set():
                    break
            generation.withdraw()

        threads = [threading.Thread(target=decode, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        start = time.perf_counter()
        reading.set()
        next(model.session().generate(prompt, max_tokens=1, **GREEDY), None)
        took = time.perf_counter() - start
        done.set()
        for thread in threads:
            thread.join()
        quiet, busy = np.percentile(before[40:], 99), np.percentile(gaps, 99)
        yield f"p99 between tokens, without, ms ({number})", 1e3 * quiet
        yield f"p99 between tokens, while it is read, ms ({number})", 1e3 * busy
        yield f"p99 over without ({number})", busy / quiet
        yield f"the prompt over alone ({number})", took / alone
        model.kv_cache.prefixes.clear()
        gc.collect()


def many(model: Model, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """1,000 short texts to be labelled: the log-probabilities of a first token, by a loop and together."""
    words = (Path(__file__).parent.parent / "tests" / "data" / "prose.txt").read_text(encoding="utf-8").split()
    texts = [f"Text: {' '.join(words[i : i + 8])}\nTopic:" for i in range(1000)]
    prompts = [model.tokenizer.encode(text) for text in texts]
    options = {"temperature": 0, "max_tokens": 1, "logprobs": 5}

    def loop() -> list[int]:
        session, found = model.session(), []
        for prompt in prompts:
            generation = session.generate(prompt, **options)
            generation.read()
            found.append(generation.token_ids[0])
        return found

    def all_together() -> list[int]:
        return [generation.token_ids[0] for generation in model.generate_many(prompts, **options)]

    ratios, speeds = [], []
    for _ in range(args.rounds):
        times = []
        for work in (loop, all_together):
            start = time.perf_counter()
            found = work()
            times.append(time.perf_counter() - start)
            model.kv_cache.prefixes.clear()
        assert found == loop()
        ratios.append(times[0] / times[1])
        speeds.append(len(texts) / times[1])
    yield "tokens of a text", statistics.mean(map(len, prompts))
    yield "texts/s together", statistics.median(speeds)
    yield "over a loop", statistics.median(ratios)


TASKS: dict[str, Callable[[Model, argparse.Namespace], Iterator[tuple[str, float]]]] = {
    "batches": batches,
    "variants": variants,
    "shared": shared_prompt,
    "beside": beside,
    "many": many,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the engine.")
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(TASKS))
    parser.add_argument("--llama-cpp")
    parser.add_argument("--gguf")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    folder = resolve(args.model)
    figures: dict[str, dict[str, float]] = {}
    for threads in map(int, args.threads.split(",")):
        for name in args.only.split(","):
            with Model(folder, threads=threads) as model:
                for what, value in TASKS[name](model, args):
                    figures.setdefault(f"{threads}", {})[what] = value
                    if not args.json:
                        print(f"{threads} threads  {what:<55} {value:10.3f}", flush=True)
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

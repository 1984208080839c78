"""How fast a model runs here: prefill and decode at depths and thread counts, and the memory's own speed beside it.

As llama.cpp's `llama-bench`: random tokens (the speed doesn't depend on them), one warm-up, medians of repeats.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import OptionError
from edgerun.measure.profile import KindTime, profile_decode
from edgerun.progress import Progress, silent
from edgerun_kernels.build.load import kernels
from edgerun_kernels.measure import read_bandwidth

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.session import Session

WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Plan:
    """prompt, gen: tokens to prefill and to decode; depths: tokens in the cache before each; repeat: how often;
    profile: whether decoding is measured once more, per kind of operation; parallel: how many sequences decode
    together."""

    prompt: int
    gen: int
    depths: tuple[int, ...]
    repeat: int
    profile: bool = False
    parallel: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.gen < 1 or self.repeat < 1 or not self.depths or min(self.depths) < 0:
            raise OptionError("prompt, gen and repeat must be at least 1, and depths at least 0")
        if not self.parallel or min(self.parallel) < 1:
            raise OptionError("parallel must be at least 1")

    @property
    def context(self) -> int:
        """Tokens that the cache must have room for."""
        return max(max(self.depths) + max(self.prompt, self.gen), WARM_UP_TOKENS + 1)


@dataclass(frozen=True)
class Result:
    """Medians over the repeats, with `depth` tokens in the cache at the start of each.

    parallel: sequences that decode together; decode_tokens_per_s is of all of them, the other figures are of one.

    first_token_s: from the prompt to the first token: prefill, and the choice of the likeliest token.
    peak_rss_bytes: most memory that the process held during these runs, the mapped weights included.
    memory_read_gb_per_s: what as many threads read from memory at most, in 1e9 bytes a second.
    profile: if it was asked for, where the time of a decoded token goes.
    """

    threads: int
    depth: int
    parallel: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    first_token_s: float
    peak_rss_bytes: int
    memory_read_gb_per_s: float
    profile: list[KindTime] | None = None


def memory_read_gb_per_s(threads: int) -> float:
    """The machine's memory read bandwidth with that many threads, in 1e9 bytes a second."""
    return read_bandwidth(kernels(), threads)


def benchmark(
    load: Callable[[int], Model], threads: Iterable[int], plan: Plan, progress: Progress = silent
) -> list[Result]:
    """Runs the plan with each number of threads; `load` gives a model with that many, and room for `plan.context`."""
    results: list[Result] = []
    counts = list(threads)
    total = len(counts) * len(plan.depths) * len(plan.parallel) * plan.repeat
    for count in counts:
        bandwidth = memory_read_gb_per_s(count)
        with load(count) as model:
            for depth, parallel in itertools.product(plan.depths, plan.parallel):
                done = len(results) * plan.repeat

                def step(i: int, done: int = done, what: str = f"{count} threads, depth {depth}") -> None:
                    progress(done + i, total, what)

                results.append(_measure(model, depth, parallel, plan, bandwidth, step))
    progress(total, total, "done")
    return results


def _measure(
    model: Model, depth: int, parallel: int, plan: Plan, bandwidth: float, step: Callable[[int], None]
) -> Result:
    session = model.session()
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, plan.context).tolist()
    _reset_peak()
    session.prefill(tokens[:WARM_UP_TOKENS])
    session.decode(tokens[0])
    session.reset()
    if depth:
        session.prefill(tokens[:depth])
    prefill, decode = [], []
    for i in range(plan.repeat):
        step(i)
        prefill.append(_prefill_s(session, tokens[depth : depth + plan.prompt]))
        session.rewind(depth)
        decode.append(_decode_s(session, tokens[depth : depth + plan.gen], parallel))
        session.rewind(depth)
    peak = peak_rss_bytes()
    kinds = None
    if plan.profile:
        kinds = profile_decode(model, session, tokens[depth : depth + plan.gen], bandwidth)
        session.rewind(depth)
    return Result(
        threads=model.threads,
        depth=depth,
        parallel=parallel,
        prefill_tokens_per_s=plan.prompt / median(prefill),
        decode_tokens_per_s=parallel * plan.gen / median(decode),
        first_token_s=median(prefill),
        peak_rss_bytes=peak,
        memory_read_gb_per_s=bandwidth,
        profile=kinds,
    )


def _prefill_s(session: Session, tokens: list[int]) -> float:
    start = time.perf_counter()
    session.prefill(tokens).argmax()
    return time.perf_counter() - start


def _decode_s(session: Session, tokens: list[int], parallel: int) -> float:
    if parallel > 1:
        return _decode_together_s(session, tokens, parallel)
    start = time.perf_counter()
    for token in tokens:
        session.decode(token).argmax()
    return time.perf_counter() - start


def _decode_together_s(session: Session, tokens: list[int], parallel: int) -> float:
    """As many forks of the session, a token of each in every run."""
    runner, sequences = session.model.runner, [session.sequence.fork() for _ in range(parallel)]
    logits = np.empty((parallel, runner.tape.logits_stride), np.float32)
    start = time.perf_counter()
    for i in range(len(tokens)):
        chosen = [[tokens[(i + j) % len(tokens)]] for j in range(parallel)]
        batch = [sequence.begin(part, 1, decodes=True) for sequence, part in zip(sequences, chosen, strict=True)]
        if session.policy is None:
            runner.run(batch, logits)
        else:  # each reads its own columns
            for sequence, rows in zip(sequences, batch, strict=True):
                runner.run([rows], logits, session.policy, sequence.running)
        for sequence, part in zip(sequences, chosen, strict=True):
            sequence.done(part)
        logits.argmax(axis=1)
    return time.perf_counter() - start


def _reset_peak() -> None:
    """Makes the kernel forget the peak so far, where it can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    """Most memory that this process has held since the last reset (where there is none: since it started)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

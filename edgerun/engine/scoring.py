"""How likely a model finds given texts: many of them in every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.engine.many import PARALLEL
from edgerun.engine.runner import Runner
from edgerun.engine.sequence import Sequence as EngineSequence
from edgerun.progress import Progress


class Wanted(NamedTuple):
    """A prompt, and the tokens behind it whose log-probabilities are asked for; neither is empty."""

    prompt: Sequence[int]
    continuation: Sequence[int]

    @property
    def tokens(self) -> list[int]:
        """What is to run: nothing is asked about what follows the last token."""
        return [*self.prompt, *self.continuation[:-1]]


def score_many(
    runner: Runner, start: Callable[[], EngineSequence], wanted: Sequence[Wanted], progress: Progress
) -> list[list[float]]:
    """The log-probability of every token of every continuation, in order. start: an empty sequence, exact or with a
    variant. Neighbours with one prompt read it once. progress(done, in all, "texts"). Raises as a run does."""
    found: list[list[float]] = [[] for _ in wanted]
    working: list[tuple[int, EngineSequence]] = []
    begun = done = 0
    rows = runner.tape.max_rows
    logits = runner.logits_buffer(rows)
    try:
        while done < len(wanted):
            progress(done, len(wanted), "texts")
            while begun < len(wanted) and len(working) < PARALLEL and not _waits(wanted, working, begun):
                sequence = start()
                sequence.reuse(wanted[begun].prompt)
                working.append((begun, sequence))
                begun += 1
            _run(runner, wanted, working, found, logits)
            for index, sequence in [one for one in working if len(found[one[0]]) == len(wanted[one[0]].continuation)]:
                sequence.release()
                working.remove((index, sequence))
                done += 1
    finally:
        for _, sequence in working:
            sequence.release()
    progress(done, len(wanted), "texts")
    return found


def _waits(wanted: Sequence[Wanted], working: Sequence[tuple[int, EngineSequence]], index: int) -> bool:
    """Whether a text's prompt is being read by another: it then begins behind it."""
    prompt = wanted[index].prompt
    return any(s.position < len(prompt) and wanted[i].prompt == prompt for i, s in working)


def _run(
    runner: Runner,
    wanted: Sequence[Wanted],
    working: Sequence[tuple[int, EngineSequence]],
    found: list[list[float]],
    logits: NDArray[np.float32],
) -> None:
    room, parts, batch = runner.tape.max_rows, [], []
    for index, sequence in working:
        tokens, held = wanted[index].tokens, sequence.position
        n = min(room, len(tokens) - held, sequence.most_rows(held))
        if n <= 0:
            continue
        n_out = max(0, min(n, held + n - (len(wanted[index].prompt) - 1)))
        part = tokens[held : held + n]
        batch.append(sequence.begin(part, n_out, decodes=False))
        parts.append((index, sequence, part, n_out))
        room -= n
    try:
        runner.run(batch, logits)
    except BaseException:
        for _, sequence, _, _ in parts:
            sequence.undone()
        raise
    at = 0
    for index, sequence, part, n_out in parts:
        sequence.done(part)
        continuation, scores = wanted[index].continuation, found[index]
        for row in logits[at : at + n_out]:
            scores.append(_log_probability(runner, row, continuation[len(scores)]))
        at += n_out
        if sequence.position >= len(wanted[index].prompt) and sequence.position - len(part) < len(wanted[index].prompt):
            sequence.keep_first(len(wanted[index].prompt))


def _log_probability(runner: Runner, row: NDArray[np.float32], token: int) -> float:
    address, n = int(row.ctypes.data), runner.tape.vocab_size
    largest = float(row[runner.kernels.argmax(address, n)])
    return float(row[token]) - largest - math.log(runner.kernels.exp_sum(address, n))

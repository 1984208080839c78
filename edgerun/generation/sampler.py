"""Chooses tokens: penalties, bias and the compiled sampler, with one stream of random numbers a generation."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.memory import aligned

if TYPE_CHECKING:
    from edgerun.generation.options import SamplingOptions
    from edgerun_kernels.build.load import Kernels

BLOCK = 64
COLDEST = 1e-4
"""Temperatures below this take the most likely token: nothing else has a weight that float32 can hold."""


def _largest(row: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The places of the ``count`` largest values, in any order; they lie in the ``count`` blocks whose largest values
    are largest, and most blocks need not be looked at again."""
    n_blocks = len(row) // BLOCK
    if n_blocks <= count:
        return np.argpartition(row, -count)[-count:]
    largest = row[: n_blocks * BLOCK].reshape(n_blocks, BLOCK).max(axis=1)
    blocks = np.argpartition(largest, -count)[-count:]
    places = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    places = np.concatenate([places, np.arange(n_blocks * BLOCK, len(row))])
    found: NDArray[np.int64] = places[np.argpartition(row[places], -count)[-count:]]
    return found


class Sampler:
    """One generation's choices. ``prompt``: repetition_penalty counts its tokens as seen."""

    def __init__(self, kernels: Kernels, options: SamplingOptions, vocab_size: int, prompt: Iterable[int]) -> None:
        self._kernels = kernels
        self._options = options
        self._vocab_size = vocab_size
        self._random = random.Random(options.seed)
        self._generated: Counter[int] = Counter()
        self._prompt = frozenset(prompt) if options.repetition_penalty != 1 else frozenset()
        self._penalises = (options.repetition_penalty, options.presence_penalty, options.frequency_penalty) != (1, 0, 0)
        self._greedy = options.temperature < COLDEST
        self._work = aligned(4 * -(-vocab_size // 16) * 16).view(np.float32)
        self._heap = np.empty(vocab_size, np.int32)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token for logits [>= vocab_size, padded to 16 floats], which stay as they are."""
        kernels, options, n = self._kernels, self._options, self._vocab_size
        address = int(logits.ctypes.data)
        if not self._greedy or self._penalises or options.logit_bias:
            np.copyto(self._work[:n], logits[:n])
            address = int(self._work.ctypes.data)
            self._adjust(address)
        if self._greedy:
            return kernels.argmax(address, n)
        heap = int(self._heap.ctypes.data)
        chances = (options.temperature, min(options.top_k, n), options.top_p, options.min_p, self._random.random())
        return kernels.sample(address, n, heap, *chances)

    def skip(self, token_id: int) -> None:
        """Instead of ``choose`` and ``accept``: what another sampler with these options has chosen."""
        self._random.random()
        self.accept(token_id)

    def accept(self, token_id: int) -> None:
        """Counts a generated token for the penalties."""
        if self._penalises:
            self._generated[token_id] += 1

    def _adjust(self, address: int) -> None:
        options = self._options
        for token_id, bias in options.logit_bias.items():
            self._work[token_id] += bias
        if self._penalises:
            seen = sorted(self._prompt | self._generated.keys())
            ids = np.array(seen, np.int64)
            counts = np.array([self._generated[i] for i in seen], np.int64)
            penalties = (options.repetition_penalty, options.presence_penalty, options.frequency_penalty)
            self._kernels.penalize(address, int(ids.ctypes.data), int(counts.ctypes.data), len(seen), *penalties)

    def logprobs(self, logits: NDArray[np.float32], token_id: int, top: int) -> tuple[float, list[tuple[int, float]]]:
        """The model's own log-probability (before temperature, penalties and filters) of a token, and of the ``top``
        likeliest ones, likeliest first."""
        n = self._vocab_size
        row = logits[:n]
        best = self._kernels.argmax(int(logits.ctypes.data), n)
        normaliser = float(row[best]) + math.log(self._kernels.exp_sum(int(logits.ctypes.data), n))
        likeliest: list[tuple[int, float]] = []
        if top:
            ids = _largest(row, min(top, n))
            ids = ids[np.lexsort((ids, -row[ids]))]
            likeliest = [(int(i), float(row[i]) - normaliser) for i in ids]
        return float(row[token_id]) - normaliser, likeliest

"""What is measured on a batch before a variant is made: inputs of the base's linear layers, and what every candidate
does to the outputs of the fine-tuned model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgerun.variants.darex_q import log_softmax, output_change, row_sums

from ..families import Matrix
from .batch import Batch
from .forward import forward
from .pair import Float, Pair
from .sparsify import Sparsify

_LOGITS = 1 << 25
"""Logits that are in memory at one time."""


@dataclass
class Inputs:
    """Of the inputs of every linear layer of the base: ||x|| and the mean, float32 [K], by the matrix's name. An
    embedding that is the output head too has those of the head; one that is not has none, its rows being looked up."""

    norms: dict[str, Float] = field(default_factory=dict)
    means: dict[str, Float] = field(default_factory=dict)

    def add(self, name: str, x: Float) -> None:
        """x: [M, K], all inputs of one matrix."""
        self.norms[name] = np.sqrt((x * x).sum(axis=0))
        self.means[name] = x.mean(axis=0)


@dataclass(frozen=True)
class Candidate:
    """A sparse delta to try. scale: what it is multiplied with, for all matrices or by name."""

    sparsify: Sparsify
    scale: float | Mapping[str, float] = 1.0

    def scale_of(self, name: str) -> np.float32:
        return np.float32(self.scale[name] if isinstance(self.scale, Mapping) else self.scale)


@dataclass(frozen=True)
class Change:
    """What a candidate does. kl: of its outputs to the fine-tuned model's, nats per place. exact: share of examples
    whose answer it would give word for word. logprob: mean log-probability of the answers' tokens."""

    kl: float
    exact: float
    logprob: float


def record(pair: Pair, batch: Batch, step: Callable[[int, int], None]) -> Inputs:
    """Runs the base on a batch."""
    inputs = Inputs()
    base = _Base(pair, inputs, batch.valid.reshape(-1))
    hidden = forward(pair.description, base, batch.tokens, batch.at, step)
    inputs.add((pair.description.output or pair.description.embedding).name, hidden[0])
    return inputs


def compare(
    pair: Pair, batch: Batch, candidates: Sequence[Candidate], step: Callable[[int, int], None]
) -> list[Change]:
    """Runs the fine-tuned model and all candidates on a batch, side by side."""
    models = _Candidates(pair, candidates)
    head = pair.description.output or pair.description.embedding
    hidden = forward(pair.description, models, batch.tokens, batch.at, step)
    count = len(batch.at)
    changes = np.zeros((len(candidates), count))
    logprobs, right = np.zeros((len(candidates), count)), np.zeros((len(candidates), count), bool)
    few = max(1, _LOGITS // (hidden.shape[0] * head.rows))
    for start in range(0, count, few):
        some = slice(start, min(count, start + few))
        logits = models.linear(head, hidden[:, some])
        targets = batch.targets[some]
        for i, ours in enumerate(logits[1:]):
            changes[i, some] = output_change(ours, logits[0])
            logprobs[i, some] = log_softmax(ours)[np.arange(len(targets)), targets]
            right[i, some] = ours.argmax(axis=-1) == targets
    wrong = [set(batch.example[~row].tolist()) for row in right]
    total = len(set(batch.example.tolist()))
    return [
        Change(float(changes[i].mean()), 1 - len(wrong[i]) / total, float(logprobs[i].mean()))
        for i in range(len(candidates))
    ]


def delta_sums(pair: Pair, means: Mapping[str, Float]) -> dict[str, npt.NDArray[np.float64]]:
    """What `layer_q` needs: sums of delta * x_mean over every row of every linear layer's matrix that was trained."""
    sums = {}
    for matrix in pair.description.matrices():
        if matrix.name in means:
            blocks = [(start, pair.delta(matrix, start, stop)) for start, stop in pair.blocks(matrix)]
            found = [row_sums(delta, means[matrix.name]) for _, delta in blocks if delta is not None]
            if found:
                sums[matrix.name] = np.concatenate(found)
    return sums


class _Base:
    """The base alone, noting what goes into its linear layers."""

    def __init__(self, pair: Pair, inputs: Inputs, valid: npt.NDArray[np.bool_]) -> None:
        self.pair, self.inputs, self.valid = pair, inputs, valid

    def embed(self, matrix: Matrix, tokens: npt.NDArray[np.int64]) -> Float:
        return _rows(self.pair, matrix, tokens)[None]

    def linear(self, matrix: Matrix, x: Float) -> Float:
        self.inputs.add(matrix.name, x[0][self.valid])
        y = np.empty((1, x.shape[1], matrix.rows), np.float32)
        for start, stop in self.pair.blocks(matrix):
            y[0, :, start:stop] = x[0] @ matrix.floats(self.pair.base, start, stop).T
        return y

    def vector(self, name: str, base: Float) -> Float:
        return base[None, None]


class _Candidates:
    """The fine-tuned model first, then base + scale * sparse delta of every candidate, side by side."""

    def __init__(self, pair: Pair, candidates: Sequence[Candidate]) -> None:
        self.pair, self.candidates = pair, candidates
        self._vectors = pair.deltas.vectors()

    def embed(self, matrix: Matrix, tokens: npt.NDArray[np.int64]) -> Float:
        models = 1 + len(self.candidates)
        x = np.repeat(_rows(self.pair, matrix, tokens)[None], models, axis=0)
        for start, stop in self.pair.blocks(matrix):
            delta = self.pair.delta(matrix, start, stop)
            if delta is not None:
                here = (tokens >= start) & (tokens < stop)
                for model, dense in enumerate(self._deltas(matrix, start, delta)):
                    x[model][here] += dense[tokens[here] - start]
        return x

    def linear(self, matrix: Matrix, x: Float) -> Float:
        y = np.empty((*x.shape[:2], matrix.rows), np.float32)
        for start, stop in self.pair.blocks(matrix):
            weights = matrix.floats(self.pair.base, start, stop)
            delta = self.pair.delta(matrix, start, stop)
            if delta is None:
                y[:, :, start:stop] = x @ weights.T
                continue
            for model, dense in enumerate(self._deltas(matrix, start, delta)):
                y[model, :, start:stop] = x[model] @ (weights + dense).T
        return y

    def _deltas(self, matrix: Matrix, start: int, delta: Float) -> Iterator[Float]:
        """The dense delta of one model after another; what several candidates share is made sparse once."""
        yield delta
        last, dense = None, delta
        for candidate in self.candidates:
            if candidate.sparsify is not last:
                last, dense = candidate.sparsify, candidate.sparsify(matrix, start, delta).dense()
            yield dense * candidate.scale_of(matrix.name)

    def vector(self, name: str, base: Float) -> Float:
        delta = self._vectors.get(name)
        return (base if delta is None else base + delta)[None, None]


def _rows(pair: Pair, matrix: Matrix, tokens: npt.NDArray[np.int64]) -> Float:
    """The base's embedding of tokens [B, T]: [B, T, K]."""
    different, places = np.unique(tokens, return_inverse=True)
    rows = np.concatenate([matrix.floats(pair.base, int(i), int(i) + 1) for i in different])
    return rows[places.reshape(tokens.shape)]

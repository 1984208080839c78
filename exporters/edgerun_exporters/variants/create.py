"""create(): a base and a fine-tuned model in, one variant file out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgerun.errors import OptionError
from edgerun.progress import Progress, silent
from edgerun.variants.store import DenseDelta, SparseDelta, write_variant

from ..fingerprint import fingerprint
from . import choose
from .batch import TEXT, Batch, labelled_batch, open_tokenizer, text_batch
from .choose import Choice
from .pair import Pair, open_pair
from .sparsify import Sparsify, by_chance, by_columns, by_magnitude, by_wanda, joined

METHODS = ("auto", "dare", "darex-q", "darex-q-layers", "magnitude", "wanda", "structural")


@dataclass(frozen=True)
class CreateReport:
    """What became of a delta. method: the one used. kept: elements in the file. elements: of the matrices that were
    trained. share: the file's size by that of the fine-tuned model in bfloat16. notes: what was chosen, and why."""

    method: str
    kept: int
    elements: int
    bytes: int
    share: float
    notes: list[str]
    parameters: dict[str, object]
    quality: dict[str, object]


def create(
    base: str | os.PathLike[str],
    finetuned: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str = "auto",
    drop: float = 0.95,
    seed: int = 0,
    q: float | None = None,
    text: str | None = None,
    labels: Sequence[tuple[str, str]] = (),
    quality: Mapping[str, object] | None = None,
    bits: int = 4,
    progress: Progress | None = None,
) -> CreateReport:
    """Writes the delta between the original weights of two models as a variant of the first.

    base, finetuned: anything that `edgerun.load` takes, the second also the folder of a PEFT LoRA adapter. method: one
    of METHODS; "darex-q" finds q by the score on `labels` (prompts and answers) if there are any, else by the change
    of outputs on `text`; "darex-q-layers" by the analytic rule; "auto" follows DAREx's decisions. drop: the share p of
    elements to drop. q: DARE's divisor, instead of finding one ("darex-q", "structural"). text: what activations and
    outputs are measured on, by default the labels' or a short general one. quality: measured scores to keep in the
    file. bits: of the stored values, 4 or 8. The same arguments give the same bytes.

    Norms and biases are kept whole. Raises CheckpointError, HubError, PackageError, OptionError, VariantError.
    """
    _check(method, drop, q)
    progress = progress or silent
    pair = open_pair(base, finetuned, progress)
    notes = [] if pair.kind == "full" else ["the fine-tuned side is a LoRA adapter: its delta is B A alpha / r"]
    if method == "auto":
        method, why = choose.method_for(pair, drop, progress)
        notes.append(f"{method}: {why}")
    choice = _choose(pair, method, drop, seed, q, text, labels, progress)
    parameters = {"drop": drop, "seed": seed, "delta": pair.kind, **choice.parameters}
    measured = {**choice.quality, **(quality or {})}
    counter = _Counter(pair, choice.sparsify, progress)
    write_variant(
        out,
        counter.tensors(),
        base=fingerprint(pair.base, pair.description),
        method=method,
        parameters=parameters,
        quality=measured,
        bits=bits,
    )
    size = Path(out).stat().st_size
    whole = 2 * sum(matrix.rows * matrix.columns for matrix in pair.description.matrices())
    whole += 2 * sum(len(vector) for _, vector in pair.description.vectors())
    return CreateReport(
        method, counter.kept, counter.elements, size, size / whole, notes + choice.notes, parameters, measured
    )


class _Counter:
    """Makes one tensor's delta after another, and counts."""

    def __init__(self, pair: Pair, sparsify: Sparsify, progress: Progress) -> None:
        self.pair, self.sparsify, self.progress = pair, sparsify, progress
        self.kept = self.elements = 0

    def tensors(self) -> Iterator[tuple[str, SparseDelta | DenseDelta]]:
        matrices = self.pair.description.matrices()
        total = sum(matrix.rows * matrix.columns for matrix in matrices)
        done = 0
        for matrix in matrices:
            parts, changed = [], False
            for start, stop in self.pair.blocks(matrix):
                delta = self.pair.delta(matrix, start, stop)
                changed |= delta is not None
                if delta is None:
                    empty = np.zeros(0, np.int32)
                    counts = np.zeros(stop - start, np.int32)
                    parts.append(SparseDelta((stop - start, matrix.columns), counts, empty, np.zeros(0, np.float32)))
                else:
                    parts.append(self.sparsify(matrix, start, delta))
                done += (stop - start) * matrix.columns
                self.progress(done, total, f"Writing {matrix.name}")
            if changed:
                sparse = joined(parts)
                self.kept += len(sparse.values)
                self.elements += matrix.rows * matrix.columns
                yield matrix.name, sparse
        for name, values in self.pair.deltas.vectors().items():
            yield name, DenseDelta(values)


def _choose(
    pair: Pair,
    method: str,
    drop: float,
    seed: int,
    q: float | None,
    text: str | None,
    labels: Sequence[tuple[str, str]],
    progress: Progress,
) -> Choice:
    if method == "dare" or (method == "darex-q" and q is not None):
        return Choice(by_chance(drop, seed, 1 - drop if q is None else q), {} if q is None else {"q": q})
    if method == "structural":
        return Choice(by_columns(drop, seed, 1 - drop if q is None else q), {} if q is None else {"q": q})
    if method == "magnitude":
        return Choice(by_magnitude(drop))
    batch = _batch(pair, text, labels)
    if method == "wanda":
        norms = choose.record_inputs(pair, batch, progress).norms
        embedding = pair.description.embedding
        norms.setdefault(embedding.name, np.ones(embedding.columns, np.float32))
        return Choice(by_wanda(drop, norms))
    labelled = bool(labels)
    if method == "darex-q-layers":
        return choose.layer_qs(pair, drop, seed, batch, labelled=labelled, step=progress)
    return choose.global_q(pair, drop, seed, batch, labelled=labelled, step=progress)


def _batch(pair: Pair, text: str | None, labels: Sequence[tuple[str, str]]) -> Batch:
    with open_tokenizer(pair.base, pair.description.context_length) as tokenizer:
        return labelled_batch(tokenizer, labels) if labels else text_batch(tokenizer, TEXT if text is None else text)


def _check(method: str, drop: float, q: float | None) -> None:
    if method not in METHODS:
        raise OptionError(f"method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    if not 0 <= drop < 1:
        raise OptionError(f"drop is {drop}; it must be at least 0 and below 1")
    if q is not None and method not in ("darex-q", "structural"):
        raise OptionError(f"q does not go with the method {method}; leave one of them out")
    if q is not None and not 0 < q <= 1:
        raise OptionError(f"q is {q}; it must be above 0 and at most 1")

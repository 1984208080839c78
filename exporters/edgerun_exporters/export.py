"""export(): one checkpoint in, one model package out."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import OptionError
from edgerun.package.layout import public_name

from .checkpoint import Checkpoint
from .families import Description, describe
from .fingerprint import fingerprint
from .graph import build
from .merged import add_deltas
from .quantize import QUANTS, choose_format
from .readers.open import open_checkpoint
from .staging import staged_folder
from .tokenizer import write_tokenizer
from .weights import DATA_FILE

if TYPE_CHECKING:
    from edgerun.variants.coding import DenseDelta, SparseDelta

FORMAT_VERSION = 1

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ExportReport:
    """What became of a checkpoint. `bytes`: size of the package's weights; `tensors`: how many it holds."""

    notes: list[str]
    bytes: int
    tensors: int


def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    quant: str = "auto",
    compact: bool = False,
    progress: Progress | None = None,
    source_name: str | None = None,
    deltas: Mapping[str, SparseDelta | DenseDelta] | None = None,
) -> ExportReport:
    """Makes a model package at `out` from a GGUF file or a Hugging Face folder. The same input gives the same bytes.

    quant: "auto" (Q4_0, Q4_1, Q6_K and Q8_0 blocks stay bit for bit, other GGUF formats of up to 5 bits become 4 bits
    with a minimum, all else 8 bits), "q4" (linear layers in 4 bits, the rest in 8), "q6", "q8" or "f32". Ternary layers
    are exact whatever it is; beside them "auto" gives 6 bits.
    compact: ternary layers in 1.67 bits a weight instead of 2, a tenth of the package less. Processors with AVX-512
    decode them as fast, and faster where memory is slow; others are slower with them.
    progress(bytes done, bytes in all, tensor name) is called often. source_name: what to record as the source, a
    repository id (with a slash, "owner/name") or a file name; by default the name of the file or folder. deltas: of a
    variant, by package names, to be added to the weights; "auto" gives what they change 8 bits.

    `out` appears whole or stays what it was. Raises CheckpointError (unreadable, incomplete or unsupported checkpoint;
    disk full) and OptionError (unknown quant).
    """
    if quant not in QUANTS:
        raise OptionError(f"quantisation {quant!r} is unknown; choose one of {', '.join(QUANTS)}")
    source = open_checkpoint(checkpoint)
    description = describe(source) if deltas is None else add_deltas(describe(source), deltas)
    formats = _formats(description, quant, compact)
    notes = [*description.notes, *_requantised(description, formats)]
    producer = _producer()
    model, weights = build(description, lambda matrix: formats[matrix.name], producer)
    target = Path(out)
    with staged_folder(target) as folder:
        notes += write_tokenizer(source, folder, description.context_length)
        done = 0

        def step(count: int, name: str) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, weights.total, name)

        weights.write(source, folder / DATA_FILE, step)
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        config = _config(source, description, formats, notes, source_name)
        (folder / "edgerun.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return ExportReport(notes, weights.size, len(weights.places))


def _formats(description: Description, quant: str, compact: bool) -> dict[str, str]:
    """The package format of every matrix by its name."""
    matrices = description.matrices()
    any_ternary = any(matrix.ternary is not None for matrix in matrices)
    ends = (description.embedding, description.output)
    # Behind a squared ReLU most inputs are zero, and kernels leave out their columns.
    squared = description.activation == "SquaredReLU"
    sparse = {layer.matrices["down_proj"].name for layer in description.layers if squared}
    return {
        matrix.name: ("ternary_columns" if matrix.name in sparse else "ternary_triples" if compact else "ternary")
        if matrix.ternary is not None
        else choose_format(matrix.source, linear=matrix not in ends, quant=quant, ternary=any_ternary)
        for matrix in matrices
    }


def _requantised(description: Description, formats: dict[str, str]) -> list[str]:
    """One note for each (from, to) of matrices whose values change."""
    changed: Counter[tuple[str, str]] = Counter()
    for matrix in description.matrices():
        stored, chosen = matrix.source.format, public_name(formats[matrix.name])
        if stored.lower() != chosen and chosen not in ("f32", "ternary"):
            changed[stored, chosen] += 1
    return [
        f"{count} {'matrix' if count == 1 else 'matrices'} requantised from {stored} to {chosen}"
        for (stored, chosen), count in sorted(changed.items())
    ]


def _config(
    source: Checkpoint, description: Description, formats: dict[str, str], notes: list[str], source_name: str | None
) -> dict[str, Any]:
    d = description
    name = source_name or source.path.resolve().name
    repository = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    name = name if repository else name.rpartition("/")[2]
    # A GGUF file says what it is called; a folder may be a snapshot named after a commit.
    called = name.rpartition("/")[2] if source_name and source.format == "safetensors" else d.name
    linear = Counter(public_name(formats[m.name]) for layer in d.layers for m in layer.matrices.values())
    return {
        "format_version": FORMAT_VERSION,
        "family": d.family,
        "name": called,
        "n_layers": len(d.layers),
        "hidden_size": d.hidden_size,
        "intermediate_size": d.intermediate_size,
        "n_heads": d.n_heads,
        "n_kv_heads": d.n_kv_heads,
        "head_dim": d.head_dim,
        "vocab_size": d.vocab_size,
        "context_length": d.context_length,
        "rope_theta": d.rope_theta,
        "rms_norm_eps": d.rms_norm_eps,
        "tied_embeddings": d.output is None,
        "source": {
            "repo" if repository else "file": name,
            "format": source.format,
            "sha256": source.sha256(),
            "fingerprint": fingerprint(source, d),
        },
        "quantisation": {
            "linear": linear.most_common(1)[0][0],
            "embedding": public_name(formats[d.embedding.name]),
            "notes": notes,
        },
        "tool": _producer(),
        "calibration": {},
    }


def _producer() -> str:
    from edgerun import __version__

    return f"edgerun {'.'.join(__version__.split('.')[:2])}"

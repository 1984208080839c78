"""A session in a file: its tokens, its cache and what its policies keep, so that nothing is computed again.

A numpy archive (.npz) of plain arrays; ``header`` is JSON: which model, cache type, variant and policies it belongs to.
Everything is checked against the model before a kernel sees it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.settings import parameters, read_parameters
from edgerun.attention.spec import Attention
from edgerun.engine.pages import Page, PagePool
from edgerun.engine.sequence import Sequence
from edgerun.errors import EdgerunError
from edgerun.package.config import Config
from edgerun_kernels.record import PAGE

FORMAT, VERSION = "edgerun-session", 2


def save(sequence: Sequence, variant: str, config: Config, path: str | os.PathLike[str]) -> None:
    """Writes a session; what was at ``path`` is replaced once the new file is whole. Raises EdgerunError."""
    place = Path(path)
    partial = place.with_name(f"{place.name}.partial-{os.getpid()}")
    attention = sequence.attention
    arrays: dict[str, NDArray[Any]] = {"tokens": np.array(sequence.tokens, np.int64)}
    for i, page in enumerate(sequence.pages):
        if page is not None:
            arrays[f"page.{i}"] = page.memory
    if sequence.state is not None:
        arrays |= sequence.state.arrays()
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": _identity(config),
        "cache": sequence.cache.heads.cache,
        "variant": variant,
        "sparsity": sequence.sparsity,
        "mixed": sequence.mixed,
        "attention": {"name": attention.name, "parameters": parameters(attention.deltallm, attention.delta)},
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, place)
    except OSError as error:
        raise EdgerunError(
            f"{place}: cannot be written ({error.strerror or error}); free some room or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


class Saved(NamedTuple):
    """What a saved session is to run with, and its arrays, not yet checked."""

    place: Path
    variant: str
    attention: Attention
    sparsity: str
    mixed: bool
    arrays: dict[str, NDArray[Any]]


def read(path: str | os.PathLike[str], config: Config, cache: str, context: int) -> Saved:
    """What ``save`` wrote. Raises EdgerunError for a file that is none, damaged, of another model or cache type, or too
    long for the context."""
    place = Path(path)
    try:
        with np.load(place, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise EdgerunError(f"{place}: cannot be read ({error.strerror or error}); check the path") from error
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise EdgerunError(f"{place}: is no saved session, or damaged ({error}); save it again") from error
    try:
        header = json.loads(arrays["header"].tobytes())
        if (header["format"], header["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {header['format']} {header['version']}, expected {FORMAT} {VERSION}")
        tokens, variant, sparsity = arrays["tokens"], header["variant"], header["sparsity"]
        if tokens.dtype != np.int64 or tokens.ndim != 1 or not (isinstance(variant, str) and isinstance(sparsity, str)):
            raise ValueError("its tokens, its variant or its sparsity are of the wrong kind")
        written = header["attention"]
        policies = read_parameters(written["parameters"], config, "attention", partial(_damaged, place))
        attention = Attention(str(written["name"]), *policies)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EdgerunError(f"{place}: is no saved session, or damaged ({error}); save it again") from error
    for key, mine in (("model", _identity(config)), ("cache", cache)):
        if header.get(key) != mine:
            raise EdgerunError(
                f"{place}: was saved with another {key} ({str(header.get(key))[:12]}, not {mine[:12]}); load that one"
            )
    if len(tokens) > context:
        raise EdgerunError(f"{place}: holds {len(tokens)} tokens, the context is {context}; load with a larger context")
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < config.vocab_size):
        raise _damaged(place, "a token is not in the vocabulary")
    return Saved(place, variant, attention, sparsity, header.get("mixed") is not False, arrays)


def fill(sequence: Sequence, saved: Saved) -> None:
    """Gives an empty sequence that runs with what was saved its tokens, its pages and what its policies kept. Raises
    EdgerunError."""
    tokens = saved.arrays["tokens"]
    try:
        if sequence.state is not None:
            sequence.state.load(saved.arrays, len(tokens))
        sequence.mixed = saved.mixed
        needed = 0 if sequence.state is None else sequence.state.first_needed
        pool = sequence.cache.pool
        sequence.take(tokens.tolist(), [_page(saved.arrays, i, needed, pool) for i in range(-(-len(tokens) // PAGE))])
    except (ValueError, LookupError) as error:
        raise _damaged(saved.place, str(error)) from error


def _damaged(place: Path, what: str) -> EdgerunError:
    return EdgerunError(f"{place}: is damaged: {what}; save it again")


def _page(arrays: dict[str, NDArray[Any]], i: int, needed: int, pool: PagePool) -> Page | None:
    """A page of its own; None for one that is not needed any more."""
    stored = arrays.get(f"page.{i}")
    if stored is None:
        if (i + 1) * PAGE > needed:
            raise ValueError(f"page {i} is missing")
        return None
    if stored.dtype != np.uint8 or stored.shape != (pool.page_bytes,):
        raise ValueError(f"page {i} has {stored.nbytes} bytes, not {pool.page_bytes}")
    page = pool.new()
    page.memory[:] = stored
    return page


def _identity(config: Config) -> str:
    """What tells the weights as this package has them from all others."""
    known = asdict(replace(config, calibration={}, tool=""))
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

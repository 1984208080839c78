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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.delta import Delta
from edgerun.attention.deltallm import DeltaLLM
from edgerun.attention.spec import Attention
from edgerun.errors import EdgerunError
from edgerun.package.config import Config
from edgerun_kernels.record import PAGE
from edgerun_kernels.team import aligned

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.session import Session

FORMAT, VERSION = "edgerun-session", 1


def save(session: Session, path: str | os.PathLike[str]) -> None:
    """Writes a session; what was at ``path`` is replaced once the new file is whole. Raises EdgerunError."""
    place = Path(path)
    partial = place.with_name(f"{place.name}.partial-{os.getpid()}")
    attention = session.attention
    arrays: dict[str, NDArray[Any]] = {"tokens": np.array(session.tokens, np.int64)}
    for i, page in enumerate(session.pages):
        if page is not None:
            arrays[f"page.{i}"] = page
    if attention.deltallm is not None:
        arrays["theta"] = attention.deltallm.theta
        if attention.deltallm.spread is not None:
            arrays["spread"] = attention.deltallm.spread
    if session.state is not None and session.state.runs is not None:
        arrays |= {f"runs.{name}": array for name, array in session.state.runs.arrays().items()}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": _identity(session.model.package.config),
        "cache": session.model.cache,
        "variant": session.variant,
        "sparsity": session.sparsity,
        "attention": _written(attention),
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


def restore(model: Model, path: str | os.PathLike[str]) -> Session:
    """The session that ``save`` wrote. Raises EdgerunError for a file that is none, damaged, or of another model."""
    from edgerun.session import Session

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
        attention = _read(header["attention"], arrays, model)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EdgerunError(f"{place}: is no saved session, or damaged ({error}); save it again") from error
    for key, mine in (("model", _identity(model.package.config)), ("cache", model.cache)):
        if header.get(key) != mine:
            raise EdgerunError(
                f"{place}: was saved with another {key} ({str(header.get(key))[:12]}, not {mine[:12]}); load that one"
            )
    n = len(tokens)
    if n > model.context:
        raise EdgerunError(f"{place}: holds {n} tokens, the context is {model.context}; load with a larger context")
    if n and not (tokens.min() >= 0 and tokens.max() < model.vocab_size):
        raise EdgerunError(f"{place}: is damaged: a token is not in the vocabulary; save it again")
    session = Session(model, variant, attention, sparsity)
    try:
        runs = None if session.state is None else session.state.runs
        if runs is not None:
            names = ("exact", "counts", "elements", "open", "starts", "blocks")
            runs.load({name: arrays[f"runs.{name}"] for name in names}, n)
        needed = 0 if session.state is None else session.state.first_needed
        session.take(tokens.tolist(), [_page(arrays, i, needed, model) for i in range(-(-n // PAGE))])
    except (ValueError, KeyError) as error:
        raise EdgerunError(f"{place}: is damaged ({error}); save it again") from error
    return session


def _page(arrays: dict[str, NDArray[Any]], i: int, needed: int, model: Model) -> NDArray[np.uint8] | None:
    """A page in memory of its own; None for one that is not needed any more."""
    stored = arrays.get(f"page.{i}")
    if stored is None:
        if (i + 1) * PAGE > needed:
            raise ValueError(f"page {i} is missing")
        return None
    if stored.dtype != np.uint8 or stored.shape != (model.tape.page_bytes,):
        raise ValueError(f"page {i} has {stored.nbytes} bytes, not {model.tape.page_bytes}")
    page = aligned(model.tape.page_bytes)
    page[:] = stored
    return page


def _identity(config: Config) -> str:
    """Of the weights as this package has them."""
    known = asdict(replace(config, calibration={}, tool=""))
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _written(attention: Attention) -> dict[str, Any]:
    deltallm, delta = attention.deltallm, attention.delta
    return {
        "name": attention.name,
        "deltallm": deltallm and {"window": deltallm.window, "sinks": deltallm.sinks, "form": deltallm.form},
        "delta": delta and asdict(delta),
    }


def _read(written: dict[str, Any], arrays: dict[str, NDArray[Any]], model: Model) -> Attention:
    """Raises ValueError, LookupError, TypeError for what is none."""
    config = model.package.config
    heads = (config.n_layers, config.n_kv_heads)
    deltallm = delta = None
    if written["deltallm"] is not None:
        window, sinks, form = (written["deltallm"][key] for key in ("window", "sinks", "form"))
        theta, spread = _floats(arrays["theta"], heads), None
        if form not in ("key", "element") or not (_is_count(window, 1) and _is_count(sinks, 0)):
            raise ValueError("its policy has parameters that make no sense")
        if form == "element":
            spread = _floats(arrays["spread"], (*heads, config.head_dim))
        deltallm = DeltaLLM(theta, window, sinks, form, spread)
    if written["delta"] is not None:
        full, select = (tuple(written["delta"][key]) for key in ("full", "select"))
        budget, recent = written["delta"]["budget"], written["delta"]["recent"]
        right = all(_is_count(layer, 0) and layer < config.n_layers for layer in (*full, *select))
        if not right or not _is_count(recent, 1) or not _is_count(budget, recent):
            raise ValueError("its policy has parameters that make no sense")
        delta = Delta(full, select, budget, recent)
        if delta.unfed(config.n_layers) is not None:
            raise ValueError("its policy has a sparse layer before any that selects")
    return Attention(str(written["name"]), deltallm, delta)


def _floats(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if array.dtype != np.float32 or array.shape != shape or not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError("its policy's numbers are not what they must be")
    return array


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 40

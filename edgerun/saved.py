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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.spec import Attention
from edgerun.errors import EdgerunError
from edgerun.package.calibration import parameters, read_parameters
from edgerun.package.config import Config
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import PAGE

if TYPE_CHECKING:
    from edgerun.model import Model
    from edgerun.session import Session

FORMAT, VERSION = "edgerun-session", 2


def save(session: Session, path: str | os.PathLike[str]) -> None:
    """Writes a session; what was at ``path`` is replaced once the new file is whole. Raises EdgerunError."""
    place = Path(path)
    partial = place.with_name(f"{place.name}.partial-{os.getpid()}")
    attention = session.attention
    arrays: dict[str, NDArray[Any]] = {"tokens": np.array(session.tokens, np.int64)}
    for i, page in enumerate(session.pages):
        if page is not None:
            arrays[f"page.{i}"] = page
    if session.state is not None:
        arrays |= session.state.arrays()
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": _identity(session.model.package.config),
        "cache": session.model.cache,
        "variant": session.variant,
        "sparsity": session.sparsity,
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
        written = header["attention"]
        policies = read_parameters(written["parameters"], model.package.config, "attention", partial(_damaged, place))
        attention = Attention(str(written["name"]), *policies)
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
        raise _damaged(place, "a token is not in the vocabulary")
    session = Session(model, variant, attention, sparsity)
    try:
        if session.state is not None:
            session.state.load(arrays, n)
        needed = 0 if session.state is None else session.state.first_needed
        session.take(tokens.tolist(), [_page(arrays, i, needed, model) for i in range(-(-n // PAGE))])
    except (ValueError, LookupError) as error:
        raise _damaged(place, str(error)) from error
    return session


def _damaged(place: Path, what: str) -> EdgerunError:
    return EdgerunError(f"{place}: is damaged: {what}; save it again")


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

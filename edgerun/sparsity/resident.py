"""The sparsity of a loaded model: its columns are mapped once, and shared by all sessions."""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

from edgerun.errors import OptionError
from edgerun.program.tape import Tape
from edgerun.sparsity.columns import Columns, open_columns
from edgerun.sparsity.delta import Delta
from edgerun.sparsity.projections import TERNARY, projections
from edgerun.sparsity.spec import parse
from edgerun.sparsity.tape import Chosen, may_pay, with_columns

if TYPE_CHECKING:
    from edgerun.program.open import Package


class Sparsity:
    """What a model keeps of it: the columns, from their first use on, and the tapes that sessions run. Thread-safe."""

    def __init__(self, package: Package, tape: Tape, n_threads: int) -> None:
        self._package = package
        self._base = tape
        self._n_threads = n_threads
        self._columns: list[Columns] | None = None
        self._tapes: weakref.WeakValueDictionary[tuple[int, str], Tape] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def columns(self) -> list[Columns]:
        """Of all projections of the model's own tape. Raises HubError where the cache cannot be written."""
        with self._lock:
            return self._opened()

    def tape(self, dense: Tape, spec: str) -> Tape:
        """What a session runs in the place of a tape of this model, for "threshold:keep=0.6" or "none". Raises
        OptionError, HubError where the cache cannot be written."""
        setting = parse(spec, self._package.config.calibration, str(self._package.folder))
        if setting is None:
            return dense
        with self._lock:
            key = (int(dense.ops.ctypes.data), spec)
            tape = self._tapes.get(key)
            if tape is None:
                found = projections(dense)
                if not found:
                    raise OptionError(
                        f"sparsity {spec!r}: this model has no ternary layers, nor any of 4 or 8 bits over quantised "
                        "activations, whose columns could be skipped; leave it out, or --compute float32"
                    )
                if all(p.fmt in TERNARY for p in found) and any(isinstance(m, Delta) for m in setting.methods.values()):
                    raise OptionError(
                        f"sparsity {spec!r}: a ternary layer's inputs are integers of another scale at each token, so "
                        "sums cannot be kept from one to the next; choose threshold or zero"
                    )
                chosen = []
                for projection, columns in zip(found, self._opened(), strict=True):
                    method = setting.methods.get(projection.name) or setting.methods.get(projection.kind)
                    if method is not None and may_pay(projection, method):
                        chosen.append(Chosen(projection, columns, method))
                tape = with_columns(dense, chosen, self._n_threads)
                # The dense one is kept as long: another in its place would have its key.
                tape = self._tapes[key] = replace(tape, arrays=[*tape.arrays, dense.ops])
            return tape

    def _opened(self) -> list[Columns]:
        if self._columns is None:
            self._columns = open_columns(self._package, self._base, projections(self._base))
        return self._columns

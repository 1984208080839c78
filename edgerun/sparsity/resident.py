"""The sparsity of a loaded model: its columns are mapped once, and shared by all sessions."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from edgerun.errors import OptionError
from edgerun.program.tape import Tape
from edgerun.sparsity.columns import Columns, open_columns
from edgerun.sparsity.delta_activations import DeltaActivations
from edgerun.sparsity.policy import Chosen, Policy, make_policy, may_pay
from edgerun.sparsity.projections import TERNARY, projections
from edgerun.sparsity.spec import parse

if TYPE_CHECKING:
    from edgerun.program.open import Package


class Sparsity:
    """What a model keeps of it: the columns, from their first use on, and the policies that sessions run with.
    Thread-safe."""

    def __init__(self, package: Package, tape: Tape, n_threads: int) -> None:
        self._package = package
        self._tape = tape
        self._n_threads = n_threads
        self._columns: list[Columns] | None = None
        self._policies: weakref.WeakValueDictionary[str, Policy] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def columns(self) -> list[Columns]:
        """The columns of all projections of the model's tape. Raises HubError where the cache cannot be written."""
        with self._lock:
            return self._opened()

    def policy(self, spec: str) -> Policy | None:
        """What a session runs with for "threshold:keep=0.6"; the same for all sessions that ask for it while one holds
        it. None for "none". Raises OptionError, HubError where the cache cannot be written."""
        setting = parse(spec, self._package.config.calibration, str(self._package.folder))
        if setting is None:
            return None
        with self._lock:
            policy = self._policies.get(spec)
            if policy is None:
                found = projections(self._tape)
                if not found:
                    raise OptionError(
                        f"sparsity {spec!r}: this model has no ternary layers, nor any of 4 or 8 bits over quantised "
                        "activations, whose columns could be skipped; leave it out, or --compute float32"
                    )
                methods = setting.methods
                sums_are_kept = any(isinstance(method, DeltaActivations) for method in methods.values())
                if sums_are_kept and all(projection.fmt in TERNARY for projection in found):
                    raise OptionError(
                        f"sparsity {spec!r}: a ternary layer's inputs are integers of another scale at each token, so "
                        "sums cannot be kept from one to the next; choose threshold or zero"
                    )
                chosen = []
                for projection, columns in zip(found, self._opened(), strict=True):
                    method = methods.get(projection.name) or methods.get(projection.kind)
                    if method is not None and may_pay(projection, method):
                        chosen.append(Chosen(projection, columns, method))
                policy = self._policies[spec] = make_policy(self._tape, chosen, self._n_threads)
            return policy

    def _opened(self) -> list[Columns]:
        if self._columns is None:
            self._columns = open_columns(self._package, self._tape, projections(self._tape))
        return self._columns

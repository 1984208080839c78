"""The variants of a loaded model: each file is mapped and checked once, and shared by all sessions."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from edgerun.errors import VariantError
from edgerun.program.tape import Tape
from edgerun.variants import library
from edgerun.variants.spec import parse
from edgerun.variants.store import Variant, open_variant
from edgerun.variants.table import VariantTable, check, variant_table

if TYPE_CHECKING:
    from edgerun.program.open import Package

Stamp = tuple[int, int, int]


class Variants:
    """What a model keeps of variants. Files stay mapped from their first use on (pages of the file, which the system
    takes back where memory is short) until ``drop``; a file that was replaced is opened again. Thread-safe."""

    def __init__(self, package: Package, tape: Tape) -> None:
        self._package = package
        self._base = tape
        self._open: dict[Path, tuple[Stamp, Variant]] = {}
        self._tables: weakref.WeakValueDictionary[tuple[object, ...], VariantTable] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def open(self, name: str | os.PathLike[str]) -> Variant:
        """The variant of a name or path, checked to belong to this model. Raises VariantError."""
        with self._lock:
            return self._opened(name)[1]

    @property
    def resident(self) -> list[Variant]:
        """The variants that are mapped."""
        with self._lock:
            return [variant for _, variant in self._open.values()]

    def drop(self) -> None:
        """Unmaps all that no session runs."""
        with self._lock:
            self._open.clear()

    def table(self, spec: str) -> VariantTable | None:
        """What a sequence runs with for "a", "a:0.5+b:0.5"; None for "none". Raises VariantError, OptionError."""
        terms = parse(spec)
        if not terms:
            return None
        with self._lock:
            opened = [(*self._opened(name), weight) for name, weight in terms]
            key = tuple((variant.path, stamp, weight) for stamp, variant, weight in opened)
            table = self._tables.get(key)
            if table is None:
                table = variant_table(self._base, [(variant, weight) for _, variant, weight in opened], key)
                self._tables[key] = table
            return table

    def _opened(self, name: str | os.PathLike[str]) -> tuple[Stamp, Variant]:
        path = library.find(name).absolute()
        try:
            status = path.stat()
        except OSError as error:
            raise VariantError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        found = self._open.get(path)
        if found is None or found[0] != stamp:
            variant = open_variant(path)
            self._check(variant)
            found = self._open[path] = (stamp, variant)
        return found

    def _check(self, variant: Variant) -> None:
        known = self._package.config.source.get("fingerprint")
        if not isinstance(known, str):
            raise VariantError(
                f"{self._package.folder}: the package does not say which weights it was made from, so no variant can "
                "be told to belong to it; export it again with `edgerun export`"
            )
        if variant.base != known:
            raise VariantError(
                f"{variant.path}: it is a variant of another base (weights {variant.base[:12]}…, this model's are "
                f"{known[:12]}…); give a variant of {self._package.config.name}"
            )
        check(variant, self._base)

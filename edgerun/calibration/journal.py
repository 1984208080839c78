"""What a calibration has found so far, in a file, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgerun.errors import EdgerunError


class Journal:
    """Results by name, JSON values. A file that was begun for another ``purpose`` (text, model) is ignored."""

    def __init__(self, path: Path, purpose: Mapping[str, Any]) -> None:
        self._path = path
        self._purpose = dict(purpose)
        self._found: dict[str, Any] = {}
        try:
            kept = json.loads(path.read_bytes())
            if kept["purpose"] == self._purpose and isinstance(kept["found"], dict):
                self._found = kept["found"]
        except (OSError, ValueError, LookupError, TypeError):
            pass  # none yet, or cut short: it costs time, not correctness
        self._write()

    def find(self, name: str, make: Callable[[], Any]) -> Any:
        """What was found under a name; else what ``make`` gives, which is then kept."""
        if name not in self._found:
            self._found[name] = make()
            self._write()
        return self._found[name]

    def close(self) -> None:
        """Everything is found: the file goes."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        write_beside(self._path, {"purpose": self._purpose, "found": self._found})


def write_beside(path: Path, content: Any) -> None:
    """Writes JSON beside ``path`` and renames it. Raises EdgerunError if it cannot be written."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise EdgerunError(
            f"{path}: cannot be written ({error.strerror or error}); make the package's folder writable"
        ) from error
    finally:
        partial.unlink(missing_ok=True)

"""Settings go into the package: edgerun.json is written anew, beside and renamed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgerun.attention.settings import Setting, as_json, read_settings
from edgerun.calibration.journal import write_beside
from edgerun.package.config import Config, read_config, weights
from edgerun.package.reader import CONFIG


def write_settings(folder: Path, settings: Sequence[Setting]) -> None:
    """Adds settings to a package; those that it has of the same policies at the same context go.

    Raises PackageError for a package that cannot be read, EdgerunError for one that cannot be written.
    """
    config = read_config(folder / CONFIG)
    new = {(setting.policy, setting.context) for setting in settings}
    kept = [one for one in read_settings(config, folder / CONFIG) if (one.policy, one.context) not in new]
    _write(folder, config, {"settings": [as_json(one) for one in (*kept, *settings)]})


def write_activations(folder: Path, found: dict[str, Any]) -> None:
    """Puts a calibration of activations into a package (see ``edgerun.sparsity.calibrated``). Raises PackageError and
    EdgerunError as ``write_settings``."""
    config = read_config(folder / CONFIG)
    settings = [as_json(one) for one in read_settings(config, folder / CONFIG)]
    _write(folder, config, {"settings": settings, "activations": found})


def _write(folder: Path, config: Config, changes: dict[str, Any]) -> None:
    path = folder / CONFIG
    calibration = config.calibration | {"weights": weights(config)} | changes
    read_settings(replace(config, calibration=calibration), path)  # what was made here must be what reading accepts
    content: dict[str, Any] = json.loads(path.read_bytes())
    write_beside(path, content | {"calibration": calibration})

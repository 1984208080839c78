"""Settings go into the package: edgerun.json is written anew, beside and renamed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgerun.calibration.journal import write_beside
from edgerun.package.calibration import Setting, as_json, read_settings, weights
from edgerun.package.config import Config, read_config
from edgerun.package.reader import CONFIG


def write_settings(folder: Path, settings: Sequence[Setting]) -> None:
    """Adds settings to a package; those that it has of the same policies at the same context go.

    Raises PackageError for a package that cannot be read, EdgerunError for one that cannot be written.
    """
    path = folder / CONFIG
    config = read_config(path)
    new = {(setting.policy, setting.context) for setting in settings}
    kept = [one for one in read_settings(config, path) if (one.policy, one.context) not in new]
    calibration = {"weights": weights(config), "settings": [as_json(one) for one in (*kept, *settings)]}
    _check(path, replace(config, calibration=calibration))
    content: dict[str, Any] = json.loads(path.read_bytes())
    write_beside(path, content | {"calibration": calibration})


def _check(path: Path, config: Config) -> None:
    """What was made here must be what reading accepts."""
    read_settings(config, path)

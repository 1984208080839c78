"""Imports run downwards: the package knows no program, the program nothing of what hangs on it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgerun

ROOT = Path(edgerun.__file__).parent
BELOW = {"package": {"errors", "package"}, "program": {"errors", "package", "program"}}


@pytest.mark.parametrize("room", BELOW)
def test_imports_run_downwards(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            rooms = {name.split(".")[1] for name in names if name.startswith("edgerun.")}
            assert rooms <= BELOW[room], f"{path.name} imports {rooms}"

"""Adds one step to the build: the kernels are compiled to object files that travel in the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build
from setuptools.errors import ExecError

KERNELS = Path(__file__).resolve().parent / "kernels"
OBJECTS = KERNELS / "edgerun_kernels" / "objects"


class BuildKernels(Command):
    """Compiles the kernels into the source tree, where an editable install finds them and build_py collects them.

    A step of its own rather than a subclass of build_py, because setuptools turns a failure of a customised build_py
    into a warning when the install is editable.
    """

    description = "compile the kernels, one object file per instruction set"
    user_options: list[tuple[str, str | None, str]] = []  # noqa: RUF012 (setuptools' own declaration)
    editable_mode = False

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def run(self) -> None:
        # An isolated build finds its requirements through PYTHONPATH: ours is added, not put in its place.
        path = os.pathsep.join(filter(None, [str(KERNELS), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "edgerun_kernels.build", "--out", str(OBJECTS)]
        if self.editable_mode:  # others are made when they are asked for, in seconds
            command.append("--native")
        status = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
        if status != 0:
            raise ExecError(f"compiling the kernels failed with status {status}: {' '.join(command)}")


build.sub_commands.insert(0, ("build_kernels", None))

setup(cmdclass={"build_kernels": BuildKernels})

"""What the commands say of themselves."""

from __future__ import annotations

import inspect
import sys
from typing import get_args

import click
import pytest

import edgerun
from edgerun.cli.commands import NAMES, commands
from edgerun.cli.main import main
from edgerun.generation.options import SamplingOptions
from edgerun.model import load
from edgerun.program.encode import CacheType, Compute

from .conftest import Run


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgerun {edgerun.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    listed = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert listed == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: edgerun {name}" in capsys.readouterr().out
    command = commands.get_command(commands.make_context("edgerun", []), name)
    assert command is not None and command.short_help
    capsys.readouterr()
    for parameter in command.params:
        record = parameter.get_help_record(commands.make_context("edgerun", []))
        assert parameter.param_type_name == "argument" or (record is not None and record[1]), parameter.name


def test_defaults_are_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    defaults = SamplingOptions()
    assert f"varied. [default: {defaults.temperature}]" in text
    assert f"keeps all. [default: {defaults.top_k}]" in text


def test_choices_are_the_libraries() -> None:
    command = commands.get_command(commands.make_context("edgerun", []), "run")
    assert command is not None
    choices = {p.name: tuple(p.type.choices) for p in command.params if isinstance(p.type, click.Choice)}
    defaults = {p.name: p.default for p in command.params}
    signature = inspect.signature(load).parameters
    assert choices["compute"] == get_args(Compute) and choices["cache"] == get_args(CacheType)
    assert all(defaults[name] == signature[name].default for name in ("compute", "cache"))


HEAVY = ("rich", "prompt_toolkit", "jinja2", "numba", "onnxruntime", "onnx", "numpy", "huggingface_hub", "llvmlite")


def test_help_imports_nothing_heavy(edgerun: Run) -> None:
    result = edgerun("run", "--help", python=["-X", "importtime"])
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert result.returncode == 0 and "click" in imported
    assert not imported & set(HEAVY)


def test_main_is_what_python_m_runs(edgerun: Run) -> None:
    result = edgerun("--version")
    assert result.returncode == 0 and result.stdout.startswith("edgerun ")
    assert sys.executable in result.args

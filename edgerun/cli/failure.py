"""The one place that turns an exception into one line on standard error and an exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback

import click

from edgerun.errors import EdgerunError

FAILED = 1
MISUSED = 2
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + 13  # what a shell reports for SIGPIPE


def report(error: BaseException, *, debug: bool) -> int:
    """Prints the error (with its traceback if `debug`) and returns the exit status that belongs to it."""
    if isinstance(error, click.exceptions.Exit):  # --help and --version leave this way
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an impatient second ctrl-C ends us at once, without a traceback
    if debug:
        _print("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, BrokenPipeError):
        _close_stdout()
        return BROKEN_PIPE  # the reader left, as in `edgerun … | head`: no news to anyone
    status, message = explain(error)
    _flush_stdout()
    _print(f"edgerun: {message}")
    return status


def explain(error: BaseException) -> tuple[int, str]:
    """Exit status and the line (without the program's name) for an error."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, "interrupted"
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "edgerun"
        return MISUSED, f"error: {one_line(error.format_message())} (see '{where} --help')"
    if isinstance(error, click.ClickException):
        return error.exit_code, f"error: {one_line(error.format_message())}"
    if isinstance(error, EdgerunError):
        return FAILED, f"error: {one_line(str(error))}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" ({error.filename})" if error.filename else ""
        return (
            FAILED,
            f"error: the disk is full{where}; free some space, or set EDGERUN_CACHE to a folder on another disk",
        )
    if isinstance(error, OSError) and error.strerror:
        where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
        return FAILED, f"error: {error.strerror}{where}"
    if isinstance(error, MemoryError):
        return FAILED, "error: out of memory; a smaller model or a smaller --ctx needs less"
    return (
        FAILED,
        f"error: internal error: {type(error).__name__}: {one_line(str(error))} (--debug shows where; please report)",
    )


def one_line(text: str) -> str:
    """The text with every run of white space, line ends included, made one space."""
    return " ".join(text.split())


def _print(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # standard error is closed: the exit status must do
        print(text, file=sys.stderr, flush=True)


def _flush_stdout() -> None:
    """Lets out what was answered before the error, and keeps the interpreter from failing on it again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _close_stdout()


def _close_stdout() -> None:
    """Points standard output at nothing, so that the interpreter's last flush succeeds."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass

"""The entry point: runs one command and returns the exit status.

Nothing is imported at the top, so that ctrl-C meets our handler from the first moment on.
"""

from __future__ import annotations


def main(argv: list[str] | None = None) -> int:
    """Runs `edgerun ARGV` (default: the process's arguments) and returns the exit status."""
    debug: list[bool] = []  # filled by --debug, wherever on the line it stands
    try:
        import os
        import sys

        from edgerun.cli.commands import commands

        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a model may write what the terminal's encoding lacks
        if "_EDGERUN_COMPLETE" in os.environ:  # click's own protocol for shell completion
            commands.main(prog_name="edgerun")
        with commands.make_context("edgerun", sys.argv[1:] if argv is None else argv, obj=debug) as context:
            commands.invoke(context)
        sys.stdout.flush()
        return 0
    except BaseException as error:
        from edgerun.cli.failure import report

        return report(error, debug=bool(debug))

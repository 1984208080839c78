"""`edgerun bench --report`: a file that says what was measured on what, to attach to an issue."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgerun.measure.benchmark import Result

COLUMNS = (
    "threads",
    "depth",
    "parallel",
    "prefill tokens/s",
    "decode tokens/s",
    "first token s",
    "peak MiB",
    "memory read GB/s",
)


def check_writable(path: Path) -> None:
    """Raises OptionError before anything is measured in vain."""
    from edgerun.errors import OptionError

    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise OptionError(f"the report cannot be written to {path}: {error.strerror}") from None


def text(title: str, results: list[Result], before: dict[str, str], after: dict[str, str]) -> str:
    """Markdown. before, after: the machine's state (``edgerun.measure.board.state``)."""
    from edgerun.measure.board import description
    from edgerun_kernels.build.load import kernels

    facts = {**description(), "edgerun": f"{version('edgerun')}, kernels {kernels().isa}"}
    lines = [f"# edgerun bench: {title}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    if before or after:
        lines += ["| | before | after |", "|---|---|---|"]
        names = dict.fromkeys([*before, *after])
        lines += [f"| {name} | {before.get(name, '')} | {after.get(name, '')} |" for name in names] + [""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    return "\n".join([*lines, *map(_row, results)]) + "\n"


def _row(result: Result) -> str:
    cells = (
        f"{result.threads}",
        f"{result.depth}",
        f"{result.parallel}",
        f"{result.prefill_tokens_per_s:.1f}",
        f"{result.decode_tokens_per_s:.1f}",
        f"{result.first_token_s:.3f}",
        f"{result.peak_rss_bytes / 2**20:.0f}",
        f"{result.memory_read_gb_per_s:.1f}",
    )
    return f"| {' | '.join(cells)} |"

"""`edgerun variant merge`: several variants become one file, or one plain model package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.command import command as command_
from edgerun.cli.command import option
from edgerun.cli.options import quant_option
from edgerun.cli.progress import ProgressBar
from edgerun.cli.terminal import human_bytes

if TYPE_CHECKING:
    from edgerun.variants.store import Variant


@command_("merge", "Make one variant, or a plain package, of several.")
@click.argument("spec")
@click.argument("out")
@option(
    "--method",
    type=click.Choice(["task-arithmetic", "ties"]),
    default="task-arithmetic",
    show_default=True,
    help="Weighted sum, or TIES: signs are elected first.",
)
@option("--keep", type=click.FloatRange(0, 100), metavar="PERCENT", help="TIES: of each variant's weights.  [100]")
@option("--base", type=click.Path(path_type=Path), help="The base's checkpoint: OUT becomes a model package.")
@quant_option
def command(spec: str, out: str, method: str, keep: float | None, base: Path | None, quant: str) -> None:
    """Merge SPEC, such as a:0.5+b:0.5, into OUT.

    OUT is a variant, a name or a file; with --base (a GGUF file or a folder of safetensors, from which the variants
    were made) a plain model package, which needs no variant to run.
    """
    from edgerun.variants import library
    from edgerun.variants.merge import merged, rules, terms, write_merged

    if keep is not None and method != "ties":
        raise click.UsageError("--keep belongs to --method ties")
    parameters: dict[str, Any] = {} if keep is None else {"k": keep}
    if base is None:
        path = library.place(out)
        write_merged(spec, path, method=method, **parameters)
        click.echo(f"{path}: {human_bytes(path.stat().st_size)}")
        return
    from functools import partial

    from edgerun_exporters import export

    found = terms(spec)
    _check_base(found[0][0], base)
    deltas = dict(merged(found, partial(rules()[method], **parameters)))
    with ProgressBar() as progress:
        report = export(base, out, quant=quant, progress=progress, deltas=deltas)
    click.echo(f"{out}: {report.tensors} tensors, {human_bytes(report.bytes)}")
    for note in report.notes:
        click.echo(f"note: {note}")


def _check_base(variant: Variant, base: Path) -> None:
    from edgerun.errors import VariantError
    from edgerun_exporters import fingerprint

    if fingerprint(base) != variant.base:
        raise VariantError(f"{base}: its weights are not those that {variant.path} was made for; give its own base")

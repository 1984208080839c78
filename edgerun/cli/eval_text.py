"""`edgerun eval MODEL --text FILE`: perplexity, and distance from another model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgerun.attention.spec import FULL
from edgerun.cli.eval_against import described, reference
from edgerun.cli.options import RuntimeOptions
from edgerun.cli.progress import ProgressBar, resolve
from edgerun.cli.text_input import read_text
from edgerun.errors import EdgerunError
from edgerun.measure import plots
from edgerun.sparsity.spec import NONE

if TYPE_CHECKING:
    from edgerun.measure.evaluate import Evaluation, Scorer
    from edgerun.model import Model


def run(
    model: str,
    runtime: RuntimeOptions,
    against: str | None,
    text: Path,
    window: int,
    tokens: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measures and prints; the options are those of the command."""
    from edgerun.measure.evaluate import ModelScorer, evaluate

    content = read_text(text).removesuffix("\n")  # as llama-perplexity reads a file
    folder = resolve(model)
    runtime = replace(runtime, context=window)
    with runtime.load(str(folder)) as loaded:
        runtime = replace(runtime, attention=loaded.attention, sparsity=loaded.sparsity)
        scorer = ModelScorer(loaded)
        ids = scorer.encode(content)
        with _scorer(against, folder, loaded, runtime, scorer.stepwise) as other, ProgressBar() as progress:
            if other is not None and other.encode(content) != ids:
                raise EdgerunError(
                    f"{model} and {against} split the text into different tokens, so their predictions can't be "
                    "compared; give a model with the same tokenizer"
                )
            result = evaluate(scorer, ids[:tokens], window=window, reference=other, progress=progress)
        sparsity, outside = scorer.attention_sparsity, scorer.sparsity_outside_window
        skipped = scorer.weight_bytes_skipped
    if plot is not None:
        plots.by_position(plot, result, f"{model}, attention {runtime.attention or FULL}", against)
    if as_json:
        figures = {
            "context": window,
            "tokens": result.tokens,
            "perplexity": result.perplexity,
            "perplexity_stderr": result.perplexity_stderr,
            "reference_perplexity": result.reference_perplexity,
            "kl_mean": result.kl_mean,
            "kl_stderr": result.kl_stderr,
            "top1_agreement": result.top1_agreement,
            "attention_sparsity": sparsity,
            "sparsity_outside_window": outside,
            "weight_bytes_skipped": skipped,
        }
        click.echo(json.dumps(described(model, runtime, against) | figures))
    else:
        _print(result, against, sparsity, outside, skipped)


@contextmanager
def _scorer(
    against: str | None, folder: Path, model: Model, runtime: RuntimeOptions, stepwise: bool
) -> Iterator[Scorer | None]:
    from edgerun.measure.evaluate import ModelScorer

    if against is None:
        yield None
    elif against == "onnxruntime":
        from edgerun.measure.oracle import OnnxruntimeScorer

        yield OnnxruntimeScorer(folder, model.tokenizer, threads=model.threads)
    else:
        with reference(against, folder, model, runtime) as other:
            yield ModelScorer(other, FULL, NONE, stepwise=stepwise and against == "full")


def _print(
    result: Evaluation, against: str | None, sparsity: float, outside: float | None, skipped: float | None
) -> None:
    click.echo(f"tokens scored    {result.tokens}")
    click.echo(f"perplexity       {result.perplexity:.4f} ± {result.perplexity_stderr:.4f}")
    if result.kl_mean is not None:
        click.echo(f"against          {against}, perplexity {result.reference_perplexity:.4f}")
        click.echo(f"mean KL          {result.kl_mean:.6f} ± {result.kl_stderr:.6f} nats")
        click.echo(f"top-1 agreement  {result.top1_agreement:.2%}")
    if sparsity:
        click.echo(f"keys not read    {sparsity:.2%}")
    if outside is not None:
        click.echo(f"keys not kept    {outside:.2%} of those behind the window")
    if skipped is not None:
        click.echo(f"weights not read {skipped:.2%}")

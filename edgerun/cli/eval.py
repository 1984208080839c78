"""`edgerun eval`: how well a model predicts a text, and how near it is to another."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.command import command as command_
from edgerun.cli.command import json_option, option
from edgerun.cli.options import (
    RuntimeOptions,
    attention_option,
    cache_option,
    compute_option,
    model_argument,
    sparsity_option,
    threads_option,
    variant_option,
)
from edgerun.cli.progress import ProgressBar, resolve
from edgerun.cli.text_input import read_text
from edgerun.errors import EdgerunError

if TYPE_CHECKING:
    from edgerun.evaluate import Evaluation, Scorer
    from edgerun.model import Model


@command_("eval", "Measure perplexity, and distance from another model.")
@model_argument
@option("--text", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The text to predict (UTF-8).")
@option(
    "--against",
    metavar="exact|onnxruntime|MODEL",
    help="Compare with: the same package (and variant) in float32, the same package in onnxruntime, or another model.",
)
@option(
    "--context",
    "--ctx",
    "window",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens in a window; the second half of each window is scored.",
)
@json_option
@threads_option
@compute_option
@cache_option
@variant_option
@attention_option
@sparsity_option
def command(
    model: str,
    text: Path,
    against: str | None,
    window: int,
    as_json: bool,
    threads: int | None,
    compute: Any,
    cache: Any,
    variant: str | None,
    attention: str | None,
    sparsity: str | None,
) -> None:
    """Perplexity of MODEL on a text, counted as llama.cpp's llama-perplexity counts it.

    The text is cut into windows of N tokens; in each, the tokens of the second half are predicted from all that come
    before them in the window. With --against, also the mean KL divergence (in nats, from the other model to MODEL) and
    how often both find the same token likeliest. With --sparsity, tokens whose predictions are scored are decoded one
    by one.
    """
    from edgerun.evaluate import ModelScorer, evaluate

    content = read_text(text).removesuffix("\n")  # as llama-perplexity reads a file
    folder = resolve(model)
    with RuntimeOptions(threads, window, compute, cache, variant, attention, sparsity).load(str(folder)) as loaded:
        scorer = ModelScorer(loaded)
        tokens = scorer.encode(content)
        with _reference(against, folder, loaded, threads, window, variant) as reference, ProgressBar() as progress:
            if reference is not None and reference.encode(content) != tokens:
                raise EdgerunError(
                    f"{model} and {against} split the text into different tokens, so their predictions can't be "
                    "compared; give a model with the same tokenizer"
                )
            result = evaluate(scorer, tokens, window=window, reference=reference, progress=progress)
        skipped = scorer.weight_bytes_skipped()
    if as_json:
        click.echo(json.dumps(_report(model, variant, sparsity, against, window, result, skipped)))
    else:
        _print(result, against, skipped)


def _reference(
    against: str | None, folder: Path, model: Model, threads: int | None, window: int, variant: str | None
) -> AbstractContextManager[Scorer | None]:
    from edgerun.evaluate import ModelScorer

    if against is None:
        return nullcontext()
    if against == "onnxruntime":
        from edgerun.oracle import OnnxruntimeScorer

        return OnnxruntimeScorer(folder, model.tokenizer, threads=model.threads)
    other, same = (str(folder), variant) if against == "exact" else (against, None)
    return ModelScorer(RuntimeOptions(threads, window, "float32", "f32", same).load(other))


def _report(
    model: str,
    variant: str | None,
    sparsity: str | None,
    against: str | None,
    window: int,
    result: Evaluation,
    skipped: float | None,
) -> dict[str, Any]:
    return {
        "model": model,
        "variant": variant,
        "sparsity": sparsity,
        "against": against,
        "context": window,
        "tokens": result.tokens,
        "perplexity": result.perplexity,
        "kl_mean": result.kl_mean,
        "top1_agreement": result.top1_agreement,
        "weight_bytes_skipped": skipped,
    }


def _print(result: Evaluation, against: str | None, skipped: float | None) -> None:
    click.echo(f"tokens scored    {result.tokens}")
    click.echo(f"perplexity       {result.perplexity:.4f}")
    if result.kl_mean is not None and result.top1_agreement is not None:
        click.echo(f"against          {against}")
        click.echo(f"mean KL          {result.kl_mean:.6f} nats")
        click.echo(f"top-1 agreement  {result.top1_agreement:.2%}")
    if skipped is not None:
        click.echo(f"weights unread   {skipped:.2%}")

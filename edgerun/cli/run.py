"""`edgerun run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.command import command as command_
from edgerun.cli.command import json_option, option
from edgerun.cli.options import RuntimeOptions, model_argument, runtime_options, sampling_options
from edgerun.cli.terminal import write_answer
from edgerun.cli.text_input import checked, read_stdin

if TYPE_CHECKING:
    from edgerun.generation.generation import Generation, Piece
    from edgerun.generation.options import SamplingOptions
    from edgerun.model import Model


@command_("run", "Answer one prompt.")
@model_argument
@click.argument("prompt")
@option("--system", metavar="TEXT", help="Instructions that come before the prompt.")
@option("--raw", is_flag=True, help="Continue the prompt as it stands, without the model's chat template.")
@json_option
@option(
    "--logprobs", type=int, metavar="N", help="With --json: log-probabilities, and those of the N likeliest tokens."
)
@runtime_options
@sampling_options
def command(
    model: str,
    prompt: str,
    system: str | None,
    raw: bool,
    as_json: bool,
    logprobs: int | None,
    runtime: RuntimeOptions,
    sampling: SamplingOptions,
) -> None:
    """Answer PROMPT ("-": standard input).

    A model without a chat template continues the prompt as it stands.
    """
    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json")
    if raw and system is not None:
        raise click.UsageError("--system has no place in a --raw prompt")
    prompt = read_stdin() if prompt == "-" else checked(prompt, "PROMPT")
    options = replace(sampling, logprobs=logprobs)
    start = time.perf_counter()
    with runtime.load(model) as loaded:
        load_s = time.perf_counter() - start
        generation = _generate(loaded, prompt, system, raw, options)
        if as_json:
            pieces = list(generation)
            click.echo(json.dumps(_report(loaded, model, generation, pieces, load_s), ensure_ascii=False))
            return
        try:
            for piece in generation:
                write_answer(piece.text)
        finally:
            if generation.text:
                sys.stdout.write("\n")


def _generate(model: Model, prompt: str, system: str | None, raw: bool, options: SamplingOptions) -> Generation:
    if raw or (system is None and not model.tokenizer.has_chat_template):
        return model.generate(prompt, options=options)
    messages = [] if system is None else [{"role": "system", "content": checked(system, "--system")}]
    return model.chat([*messages, {"role": "user", "content": prompt}], options=options)


def _report(model: Model, name: str, generation: Generation, pieces: list[Piece], load_s: float) -> dict[str, Any]:
    timings = generation.timings
    report: dict[str, Any] = {
        "model": name,
        "variant": model.variant,
        "sparsity": generation.sequence.sparsity,
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "token_ids": list(generation.token_ids),
        "load_s": load_s,
        **asdict(timings),
        "prefill_tokens_per_s": timings.prefill_tokens_per_s,
        "decode_tokens_per_s": timings.decode_tokens_per_s,
    }
    logprobs = [_logprob(model, piece) for piece in pieces if piece.logprob is not None]
    return report | ({"logprobs": logprobs} if logprobs else {})


def _logprob(model: Model, piece: Piece) -> dict[str, Any]:
    return {
        "token_ids": piece.token_ids,
        "text": piece.text,
        "logprob": piece.logprob,
        "top": [
            {"token_id": token_id, "text": model.tokenizer.decode([token_id], skip_special=False), "logprob": logprob}
            for token_id, logprob in piece.top_logprobs or []
        ],
    }

"""The options of every command that runs a model: the machine's side and the sampler's side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

import click

from edgerun.cli.command import Function, option
from edgerun.errors import OptionError
from edgerun.generation.options import SamplingOptions

if TYPE_CHECKING:
    from edgerun.model import Model

DEFAULTS = SamplingOptions()


@dataclass(frozen=True)
class RuntimeOptions:
    """How a model runs: what `edgerun.load` takes beside the model."""

    threads: int | None
    context: int | None
    compute: Literal["mixed", "int16", "int8", "float32"]
    cache: Literal["f16", "q8", "f32"]
    variant: str | None = None
    attention: str | None = None
    sparsity: str | None = None

    def load(self, model: str) -> Model:
        """Finds the model (fetching and exporting it under a progress bar, if it must be) and loads it."""
        import edgerun
        from edgerun.cli.progress import resolve

        folder = resolve(model)
        return edgerun.load(
            folder,
            threads=self.threads,
            context=self.context,
            compute=self.compute,
            cache=self.cache,
            variant=self.variant,
            attention=self.attention,
            sparsity=self.sparsity,
        )


def _machine(*declarations: str, **settings: Any) -> Callable[[Function], Function]:
    return option(*declarations, heading="Machine", **settings)


def _sampling(*declarations: str, **settings: Any) -> Callable[[Function], Function]:
    return option(*declarations, heading="Sampling", **settings)


model_argument = click.argument("model")
quant_option = option(
    "--quant",
    type=click.Choice(["auto", "q4", "q6", "q8", "f32"]),
    default="auto",
    show_default=True,
    help="Number format of the weights; auto keeps what a GGUF file has, where it can.",
)
threads_option = _machine(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads to compute with.  [default: one a core]"
)
context_option = _machine(
    "--ctx",
    "context",
    type=click.IntRange(1),
    metavar="N",
    help="Most tokens to keep in view.  [default: the model's own limit]",
)
compute_option = _machine(
    "--compute",
    type=click.Choice(["mixed", "int16", "int8", "float32"]),
    default="mixed",
    show_default=True,
    help="Arithmetic of the linear layers' inputs: mixed is int8, and int16 where values stand out; int16 is as good "
    "as exact, int8 is coarser, float32 slow and exact.",
)
cache_option = _machine(
    "--cache-type",
    "cache",
    type=click.Choice(["f16", "q8", "f32"]),
    default="f16",
    show_default=True,
    help="Number format of the KV cache; q8 takes half the memory of f16.",
)


variant_option = _machine(
    "--variant",
    metavar="SPEC",
    help="Fine-tuned variant of the model: a name, a file, or a sum such as a:0.5+b:0.5.  [default: none]",
)

_attention = _machine(
    "--attention",
    metavar="SPEC",
    help="What attention leaves out: full (nothing), deltallm:theta=X, delta:budget=TOKENS, or both joined by +; "
    "without parameters as `edgerun calibrate` found them.  [default: full]",
)
_quality = _machine(
    "--quality",
    type=click.FloatRange(0),
    metavar="KL",
    help="Leave out what attention, and unless --sparsity is given activations, may at this cost together (nats a "
    "token, such as 0.02), as `edgerun calibrate` found it.",
)


def attention_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds both ways to say what attention leaves out; the command gets them as one argument, `attention`."""

    @wraps(function)
    def one(attention: str | None, quality: float | None, **others: Any) -> Any:
        if quality is None:
            return function(attention=attention, **others)
        if attention is not None:
            raise OptionError("--attention and --quality both say what attention leaves out; give one of them")
        from edgerun.attention.spec import quality as calibrated

        return function(attention=calibrated(quality), **others)

    return _attention(_quality(one))


sparsity_option = _machine(
    "--sparsity",
    metavar="SPEC",
    help="Weights that decoding leaves unread: threshold:keep=0.6 (the smallest inputs'), zero.  [default: none]",
)


def runtime_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the machine's options; the command gets them as one argument, `runtime`."""

    @wraps(function)
    def bundle(
        threads: int | None,
        context: int | None,
        compute: Any,
        cache: Any,
        variant: str | None,
        attention: str | None,
        sparsity: str | None,
        **others: Any,
    ) -> Any:
        runtime = RuntimeOptions(threads, context, compute, cache, variant, attention, sparsity)
        return function(runtime=runtime, **others)

    decorated: Callable[..., Any] = bundle
    for add in (sparsity_option, attention_option, variant_option, cache_option, compute_option, context_option):
        decorated = add(decorated)
    return threads_option(decorated)


_SAMPLING_OPTIONS = (
    _sampling("-n", "max_tokens", type=int, metavar="N", help="Most tokens to generate.  [default: no limit]"),
    _sampling(
        "--temperature",
        type=float,
        default=DEFAULTS.temperature,
        show_default=True,
        metavar="X",
        help="0 always takes the likeliest token; higher is more varied.",
    ),
    _sampling(
        "--top-k",
        type=int,
        default=DEFAULTS.top_k,
        show_default=True,
        metavar="N",
        help="Keep the N likeliest tokens; 0 keeps all.",
    ),
    _sampling(
        "--top-p",
        type=float,
        default=DEFAULTS.top_p,
        show_default=True,
        metavar="P",
        help="Keep the likeliest tokens that make up this probability; 1 keeps all.",
    ),
    _sampling(
        "--min-p",
        type=float,
        default=DEFAULTS.min_p,
        show_default=True,
        metavar="P",
        help="Keep tokens this likely relative to the likeliest; 0 keeps all.",
    ),
    _sampling(
        "--repeat-penalty",
        "repetition_penalty",
        type=float,
        default=DEFAULTS.repetition_penalty,
        show_default=True,
        metavar="X",
        help="Scale down tokens that were seen; 1 is off.",
    ),
    _sampling(
        "--presence-penalty",
        type=float,
        default=DEFAULTS.presence_penalty,
        show_default=True,
        metavar="X",
        help="Take this from the logit of a token that was seen.",
    ),
    _sampling(
        "--frequency-penalty",
        type=float,
        default=DEFAULTS.frequency_penalty,
        show_default=True,
        metavar="X",
        help="Take this from it for every time it was seen.",
    ),
    _sampling("--seed", type=int, metavar="N", help="The same seed gives the same text.  [default: random]"),
    _sampling("--stop", multiple=True, metavar="TEXT", help="End the text before TEXT; may be given several times."),
)
_SAMPLING_NAMES = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the sampler's options; the command gets them as one argument, `sampling`."""

    @wraps(function)
    def bundle(**values: Any) -> Any:
        chosen = {name: values.pop(name) for name in _SAMPLING_NAMES}
        return function(sampling=SamplingOptions(**chosen), **values)

    decorated: Callable[..., Any] = bundle
    for add in reversed(_SAMPLING_OPTIONS):
        decorated = add(decorated)
    return decorated

"""A loaded model: the package, the kernels, the thread team and the tape. Sessions hold the state."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Several
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.runs import Heads
from edgerun.attention.spec import FULL, Attention, budget, parse
from edgerun.attention.spec import quality as calibrated
from edgerun.engine.engine import Engine
from edgerun.engine.many import PARALLEL, run_many
from edgerun.engine.prefixes import shared_length
from edgerun.engine.runner import Runner
from edgerun.engine.scoring import Wanted, score_many
from edgerun.engine.sequence import WORTH_A_COPY, Cache, Sequence
from edgerun.errors import EdgerunError, OptionError
from edgerun.generation.generation import Generation
from edgerun.generation.options import MAX_SEED, SamplingOptions
from edgerun.program.encode import CacheType, Compute, encode
from edgerun.program.open import open_package
from edgerun.progress import Progress, silent
from edgerun.quality import split
from edgerun.saved import fill, read
from edgerun.session import Session, check_tokens
from edgerun.sparsity.calibrated import NAME
from edgerun.sparsity.resident import Sparsity
from edgerun.sparsity.spec import NONE
from edgerun.text.tokenizer import Tokenizer
from edgerun.variants.resident import Variants
from edgerun_kernels.build.load import KernelError, kernels
from edgerun_kernels.runtime.team import MAX_THREADS

EXACT = Attention()
PREFILL_ROWS, PREFILL_VALUES = (64, 256), 1 << 19
"""Tokens that prefill runs at once, at least and at most: enough to use every weight many times, few enough to be
interrupted soon. Between, as many as have so many values in the middle of the MLP: activations then take some MiB."""


def default_threads() -> int:
    """The processors that this process may use."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        count = os.cpu_count() or 1
    return min(count, MAX_THREADS)


def load(
    model: str | Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    compute: Compute = "mixed",
    cache: CacheType = "f16",
    variant: str | os.PathLike[str] | None = None,
    attention: str | None = None,
    quality: float | None = None,
    sparsity: str | None = None,
    cache_bytes: int | None = None,
) -> Model:
    """Loads a model: a package folder, a catalogue name, a Hugging Face repository id or a checkpoint.

    threads: how many run it (default and most: one per processor; more would only wait for each other). context: the
    most tokens that a session may hold (default and most: the model's own).
    compute: how activations are quantised before q4 and q8 layers, in groups of 32: "mixed" to 8 bits, and to 16 where
    a group holds outliers (nearer to exact than other runtimes' 8 bits); "int16" all to 16 (as good as exact), "int8"
    all to 8; "float32" does not quantise them (slow; for comparisons).
    cache: element type of keys and values: "f16"; "q8", half as large and a little less exact; "f32".
    variant, attention, sparsity: what sessions run that name none themselves; see ``Model.session``.
    quality: instead of ``attention``, what approximations may cost, in nats a token: of the settings that ``edgerun
    calibrate`` found for attention and, unless ``sparsity`` says something, for activations, those that together are
    within it and read least.
    cache_bytes: what keys and values of all sessions may take together, texts included that are kept for who asks for
    them again; default: as much as is needed, and of texts that are only kept an eighth of the machine's memory.
    Raises EdgerunError: HubError, CheckpointError, PackageError, VariantError, OptionError.
    """
    from edgerun.sources.hub import resolve

    if quality is not None:
        if attention is not None:
            raise OptionError("attention and quality both say what attention leaves out; give one of them")
        attention = calibrated(quality)
    return Model(
        resolve(model),
        threads=threads,
        context=context,
        compute=compute,
        cache=cache,
        variant=variant,
        attention=attention,
        sparsity=sparsity,
        cache_bytes=cache_bytes,
    )


class Model:
    """A model package, ready to run; see ``load``. Safe to use from several threads: what they ask for is decoded
    together."""

    def __init__(
        self,
        folder: str | Path,
        *,
        threads: int | None = None,
        context: int | None = None,
        compute: Compute = "mixed",
        cache: CacheType = "f16",
        variant: str | os.PathLike[str] | None = None,
        attention: str | None = None,
        sparsity: str | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        _check_choice("compute", compute, get_args(Compute))
        _check_choice("cache", cache, get_args(CacheType))
        if cache_bytes is not None:
            _check_range("cache_bytes", cache_bytes, 1 << 62)
        self.package = open_package(folder)
        limit = self.package.config.context_length
        self.context = _check_range("context", context if context is not None else limit, limit)
        self.threads = min(
            _check_range("threads", threads if threads is not None else default_threads(), MAX_THREADS),
            default_threads(),
        )
        self.compute, self.cache = compute, cache
        self.tokenizer = Tokenizer(self.package.folder)
        try:
            self.kernels = kernels()
        except KernelError as error:
            raise EdgerunError(str(error)) from error
        program = self.package.program
        self.tape = encode(
            program,
            self.package.tensor,
            n_threads=self.threads,
            compute=compute,
            cache=cache,
            max_rows=min(prefill_rows(self.package.config.intermediate_size), self.context),
        )
        self.vocab_size = program.vocab_size
        self.heads = Heads.of(program, cache, self.context)
        self.variants = Variants(self.package, self.tape)
        """The variants that were used, mapped and ready; see ``Variants``."""
        self.variant = "none" if variant is None else os.fspath(variant)
        self.sparsities = Sparsity(self.package, self.tape, self.threads)
        """The columns for activation sparsity, mapped once they are used; see ``Sparsity``."""
        self.attention, self.sparsity = FULL, NONE
        self.attention, self.sparsity = self._policies(attention, sparsity)
        self.variants.table(self.variant)
        self.sparsities.policy(self.sparsity)
        _return_memory()
        retained = retained_bytes() if cache_bytes is None else cache_bytes
        self.kv_cache = Cache(self.heads, self.tape.page_bytes, cache_bytes, retained)
        """The pages of all sequences, and which texts they hold; see ``edgerun.engine``."""
        self.runner = Runner(self.tape, self.kernels, self.threads)
        self.engine = Engine(self.runner)

    def session(
        self,
        variant: str | os.PathLike[str] | None = None,
        attention: str | None = None,
        sparsity: str | None = None,
    ) -> Session:
        """A new, empty session.

        variant: a fine-tuned variant of this model: a name (``edgerun variant list``), a variant file, or a sum of
        several with weights, "a:0.5+b:0.5"; "none" for the model as it is. Default: the model's own default. Sessions
        with different variants run side by side.
        attention: "full" is exact; a policy leaves out what matters little, as ``edgerun.attention`` says:
        "deltallm:theta=0.5", "delta:budget=512", or both joined by "+"; "quality:kl=0.02" is a budget for both, unless
        ``sparsity`` says something (see ``load``). Default: the model's own default.
        sparsity: which weights a decoded token leaves unread: "threshold:keep=0.6" those of the smallest 40 % of the
        inputs of every layer, "zero" those of zeros; "none" reads all. Default: the model's own default.
        Raises VariantError, OptionError.
        """
        attention, sparsity = self._policies(attention, sparsity)
        return self.open_session(
            self.variant if variant is None else os.fspath(variant), parse(attention, self.package.config), sparsity
        )

    def open_session(self, variant: str = "none", attention: Attention = EXACT, sparsity: str = NONE) -> Session:
        """A new session with policies that have been read already; by default an exact one. See ``session``."""
        table, policy = self.variants.table(variant), self.sparsities.policy(sparsity)
        return Session(self, Sequence(self.kv_cache, attention, table, policy, sparsity), variant)

    def _policies(self, attention: str | None, sparsity: str | None) -> tuple[str, str]:
        """What is run in the place of these; of a budget that is for both, the two parts."""
        attention = self.attention if attention is None else attention
        limit = budget(attention)
        if limit is None or sparsity is not None or NAME not in self.package.config.calibration:
            parse(attention, self.package.config)
            return attention, self.sparsity if sparsity is None else sparsity
        return split(limit, self.package, self.tape)

    def restore(self, path: str | os.PathLike[str]) -> Session:
        """The session that ``Session.save`` wrote, with its variant, its attention policies and its sparsity. Raises
        EdgerunError if the file is damaged or belongs to another model or cache type."""
        saved = read(path, self.package.config, self.cache, self.context)
        session = self.open_session(saved.variant, saved.attention, saved.sparsity)
        fill(session.sequence, saved)
        return session

    def generate(
        self, prompt: str | Several[int], options: SamplingOptions | None = None, **changes: Any
    ) -> Generation:
        """Continues a text in a session of its own; see ``Session.generate``."""
        generation = self.session().generate(prompt, options, **changes)
        generation.alone = True
        return generation

    def chat(
        self, messages: Several[Mapping[str, Any]], options: SamplingOptions | None = None, **changes: Any
    ) -> Generation:
        """Answers a conversation in a session of its own; see ``Session.chat``."""
        generation = self.session().chat(messages, options, **changes)
        generation.alone = True
        return generation

    def generate_many(
        self,
        prompts: Iterable[str | Several[int] | Several[Mapping[str, Any]]],
        options: SamplingOptions | None = None,
        *,
        parallel: int = PARALLEL,
        progress: Progress = silent,
        variant: str | os.PathLike[str] | None = None,
        attention: str | None = None,
        sparsity: str | None = None,
        **changes: Any,
    ) -> list[Generation]:
        """Answers many prompts, together, as fast as the machine can: their finished generations, in order.

        prompts: texts or tokens to continue, or conversations to answer. parallel: how many are worked on at a time, at
        most. progress(done, in all, "prompts"). Each text is the one that the prompt alone would give. Raises
        ContextError, OptionError before anything is computed.
        """
        _check_range("parallel", parallel, 1 << 62)
        chosen = SamplingOptions.merged(options, changes)
        chosen.check_vocabulary(self.vocab_size)
        encoded = [self._encoded(prompt) for prompt in prompts]
        for ids, _ in encoded:
            self.check_tokens(ids, 0)

        shared = self.session(variant, attention, sparsity)
        prompts_only = [ids for ids, _ in encoded]
        n_shared = shared_length(min(prompts_only), max(prompts_only)) if len(encoded) > 1 else 0
        if n_shared >= WORTH_A_COPY and shared.sequence.key is not None:  # read once, before all
            shared.prefill(prompts_only[0][:n_shared])
            shared.sequence.keep()

        def start(ids: list[int], continuation: bool) -> Generation:
            sequence = self.session(variant, attention, sparsity).sequence
            return Generation(self.engine, self.tokenizer, sequence, ids, chosen, continuation=continuation, eager=True)

        return run_many(self.engine, [partial(start, *one) for one in encoded], parallel, progress)

    def score_many(
        self,
        pairs: Iterable[tuple[str | Several[int], str | Several[int]]],
        *,
        progress: Progress = silent,
        variant: str | os.PathLike[str] | None = None,
    ) -> list[list[float]]:
        """How likely given continuations are: of pairs of a prompt and a continuation, the natural logarithm of the
        probability of every token of the continuation, in order.

        Texts are tokenised apart, the prompt as for ``generate``, the continuation without BOS. Neighbours with one
        prompt, such as the labels of one text, read it once. progress(done, in all, "texts"). Raises OptionError for an
        empty prompt or continuation, ContextError, before anything is computed.
        """
        wanted = []
        for prompt, continuation in pairs:
            ids = self.encode_prompt(prompt)
            if isinstance(continuation, str):
                continuation = self.tokenizer.encode(continuation, add_bos=False)
            rest = [int(token) for token in continuation]
            self.check_tokens([*ids, *rest[:-1]], 0)
            self.check_tokens(rest, len(ids) - 1)
            wanted.append(Wanted(ids, rest))

        def start() -> Sequence:
            return self.session(variant, "full", "none").sequence

        return score_many(self.runner, start, wanted, progress)

    def generate_several(
        self, prompt: str | Several[int], n: int, options: SamplingOptions | None = None, **changes: Any
    ) -> list[Generation]:
        """``n`` answers to one prompt, which is read once and whose pages they share; with a seed, the seeds that
        follow it. They are decoded together, whichever is iterated."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise OptionError(f"n is {n!r}; it must be a whole number of at least 1")
        chosen = SamplingOptions.merged(options, changes)
        chosen.check_vocabulary(self.vocab_size)
        ids = self.encode_prompt(prompt)
        self.check_tokens(ids, 0)
        several: list[Generation] = []
        for i in reversed(range(n)):
            own = chosen if chosen.seed is None else replace(chosen, seed=(chosen.seed + i) % (MAX_SEED + 1))
            first = Generation(
                self.engine,
                self.tokenizer,
                self.session().sequence,
                ids,
                own,
                continuation=True,
                siblings=several if i == 0 else (),
                alone=True,
            )
            several = [first, *several]
        return several

    def _encoded(self, prompt: str | Several[int] | Several[Mapping[str, Any]]) -> tuple[list[int], bool]:
        """The tokens of a prompt, and whether its text goes on."""
        if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):
            return self.encode_messages(prompt), False  # type: ignore[arg-type]
        return self.encode_prompt(prompt), True  # type: ignore[arg-type]

    def encode_prompt(self, prompt: str | Several[int]) -> list[int]:
        """The tokens of a text to be continued, by the tokenizer's own BOS rule; tokens are taken as they are. Raises
        OptionError for an empty one."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
        if not ids:
            raise OptionError("the prompt is empty and this model has no token that begins a text; write something")
        return ids

    def encode_messages(self, messages: Several[Mapping[str, Any]]) -> list[int]:
        """The tokens of a conversation, written by the model's own chat template."""
        text = self.tokenizer.apply_chat_template(messages)
        return self.encode_prompt(self.tokenizer.encode(text, add_bos=False))

    def check_tokens(self, token_ids: Several[int], held: int) -> NDArray[np.int64]:
        """The tokens as int64, which are to follow ``held`` others. Raises OptionError for none or one that is not in
        the vocabulary, ContextError where they do not fit."""
        largest = self.package.config.context_length
        return check_tokens(token_ids, held, self.vocab_size, self.context, largest)

    @property
    def profile(self) -> NDArray[np.int64] | None:
        """As ``Runner.profile``."""
        return self.runner.profile

    @profile.setter
    def profile(self, measured: NDArray[np.int64] | None) -> None:
        self.runner.profile = measured

    @property
    def stops(self) -> dict[int, Callable[[NDArray[np.int64]], None]]:
        """As ``Runner.stops``."""
        return self.runner.stops

    @stops.setter
    def stops(self, stops: dict[int, Callable[[NDArray[np.int64]], None]]) -> None:
        self.runner.stops = stops

    def close(self) -> None:
        """Ends the threads. Idempotent; sessions of a closed model raise EdgerunError."""
        self.runner.close()

    def __repr__(self) -> str:
        return f"<Model {self.package.config.name}: {self.threads} threads, context {self.context}>"

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def prefill_rows(intermediate_size: int) -> int:
    """How many tokens prefill runs at once; a multiple of 64, since so many share a pass through the weights."""
    least, most = PREFILL_ROWS
    return max(least, min(PREFILL_VALUES // intermediate_size // least * least, most))


def retained_bytes() -> int:
    """An eighth of the machine's memory; where the system does not say, of 2 GiB."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        memory = 2 << 30
    return memory // 8


def _return_memory() -> None:
    """Gives what loading no longer needs back to the system, many MiB after parsing a tokenizer. GNU C library only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def _check_range(name: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise OptionError(f"{name} is {value!r}; it must be a whole number from 1 to {most}")
    return value

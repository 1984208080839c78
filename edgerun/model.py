"""A loaded model: the package, the kernels, the thread team and the tape. Sessions hold the state."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.runs import Heads
from edgerun.attention.spec import FULL, budget, parse
from edgerun.attention.spec import quality as calibrated
from edgerun.calibration.budget import split
from edgerun.engine.batch import Rows, run_record
from edgerun.errors import EdgerunError, OptionError
from edgerun.program.encode import CacheType, Compute, encode
from edgerun.program.open import open_package
from edgerun.rope import RotaryTable
from edgerun.sparsity.calibrated import NAME
from edgerun.sparsity.resident import Sparsity
from edgerun.sparsity.spec import NONE
from edgerun.text.tokenizer import Tokenizer
from edgerun.variants.resident import Variants
from edgerun_kernels.load import KernelError, kernels
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import WINDOW_BYTES, Run
from edgerun_kernels.team import MAX_THREADS, Team

if TYPE_CHECKING:
    from edgerun.generate import Generation
    from edgerun.session import Session
    from edgerun.sparsity.policy import Policy
    from edgerun.text.options import SamplingOptions

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
    Raises EdgerunError: HubError, CheckpointError, PackageError, VariantError, OptionError.
    """
    from edgerun.hub import resolve

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
    )


class Model:
    """A model package, ready to run; see ``load``. Safe to use from several threads: runs take turns."""

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
    ) -> None:
        _check_choice("compute", compute, get_args(Compute))
        _check_choice("cache", cache, get_args(CacheType))
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
        self._arena = aligned(self.tape.arena_bytes + WINDOW_BYTES)
        self._rope = RotaryTable(self.tape.inv_freq)
        self.profile: NDArray[np.int64] | None = None
        """Where every run of a tape with n_ops ops adds, int64 [2, n_ops], the ticks that each took, and the columns
        that it read where it leaves out some; None: nothing is measured."""
        self.stops: dict[int, Callable[[NDArray[np.int64]], None]] = {}
        """What every run calls, with its run record, before the op of that index, while no thread computes. For
        calibration, which reads there what the arena holds."""
        self._turn = threading.Lock()
        self._team = Team(self.kernels, self.threads)
        self._closed = False

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
        from edgerun.session import Session

        attention, sparsity = self._policies(attention, sparsity)
        return Session(
            self,
            self.variant if variant is None else variant,
            parse(attention, self.package.config),
            sparsity,
        )

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
        from edgerun.saved import restore

        return restore(self, path)

    def generate(
        self, prompt: str | Sequence[int], options: SamplingOptions | None = None, **changes: Any
    ) -> Generation:
        """Continues a text in a session of its own; see ``Session.generate``."""
        return self.session().generate(prompt, options, **changes)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], options: SamplingOptions | None = None, **changes: Any
    ) -> Generation:
        """Answers a conversation in a session of its own; see ``Session.chat``."""
        return self.session().chat(messages, options, **changes)

    def run(
        self,
        batch: Sequence[Rows],
        logits: NDArray[np.float32],
        sparsity: Policy | None = None,
        running: NDArray[np.uint8] | None = None,
    ) -> None:
        """One run of the tape over rows of one or several sequences, at most tape.max_rows together.

        logits: [>= sum of n_out, tape.logits_stride], written for the wanted rows, in their order. sparsity: which
        columns it leaves unread where one token runs, and running: its state_bytes, if there are any. For sessions and
        the engine; nothing is checked here.
        """
        ops = self.tape.ops
        with self._turn:
            if self._closed:
                raise EdgerunError("the model is closed; load it again")
            self._rope.reach(max(rows.position + len(rows.tokens) for rows in batch))
            arena_bytes = self.tape.arena_bytes if sparsity is None else sparsity.arena_bytes
            if arena_bytes + WINDOW_BYTES > len(self._arena):
                self._arena = aligned(arena_bytes + WINDOW_BYTES)
            record, kept = run_record(batch)
            record[Run.ARENA] = self._arena.ctypes.data
            record[Run.LOGITS] = logits.ctypes.data
            record[Run.COS] = self._rope.cos.ctypes.data
            record[Run.SIN] = self._rope.sin.ctypes.data
            record[Run.SPARSITY] = 0 if sparsity is None else sparsity.table.ctypes.data
            record[Run.RUNNING] = 0 if running is None else running.ctypes.data
            if self.profile is not None and self.profile.shape[1] == len(ops):
                record[Run.PROFILE] = self.profile.ctypes.data
            start = 0
            for stop in (*sorted(self.stops), len(ops)):
                self._team.run(
                    int(ops[start:].ctypes.data), stop - start, int(record.ctypes.data), all_threads=bool(self.stops)
                )
                if stop < len(ops):
                    self.stops[stop](record)
                start = stop
            del kept

    def close(self) -> None:
        """Ends the threads. Idempotent; sessions of a closed model raise EdgerunError."""
        with self._turn:
            self._closed = True
        self._team.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_team"):
            self._team.close()


def prefill_rows(intermediate_size: int) -> int:
    """How many tokens prefill runs at once; a multiple of 64, since so many share a pass through the weights."""
    least, most = PREFILL_ROWS
    return max(least, min(PREFILL_VALUES // intermediate_size // least * least, most))


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

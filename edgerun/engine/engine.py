"""The engine: requests of one model, decoded together, whoever waits for them.

There is no thread of its own as long as callers wait for their own text: whoever wants a token and finds nobody at
work makes the next *step* for all requests, and the others find what came of it. A caller alone so pays for nothing;
asyncio's callers are served by one thread for all of them.

A step is one run: a row of every request that decodes, and pieces of prompts beside them, as many as keep the others
waiting no longer than ``PATIENCE`` says. Bits do not depend on company (see ``edgerun_kernels.ops.attention``), so
neither does any text. Requests with activation sparsity decode in runs of their own: each reads its own columns, and a
run together would read no less.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Sequence as Several
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.engine.batch import Rows
from edgerun.engine.runner import Runner
from edgerun.engine.sequence import Sequence
from edgerun.errors import CacheFullError, EdgerunError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

PATIENCE = 2.0
"""How many times as long a step may take that reads a prompt beside decoding requests as one that does not."""
LEAST_ROWS = 8
"""Rows of a prompt that such a step reads at least."""


class Part(NamedTuple):
    """What a run takes of a request. position: of its sequence. tokens: the first of those that it wants. out: whether
    they are all. decodes: whether it is a token that was chosen."""

    request: Request
    position: int
    tokens: list[int]
    out: bool
    decodes: bool


class Request(Protocol):
    """What the engine needs of a request; see ``edgerun.generation.generation.Generation``.

    sequence: what it runs on. wanted: the tokens to run next: the rest of the prompt, or the last one chosen; empty
    once it has ended. decoding: whether its prompt has been read. waiting: whether what it has made has all been taken.
    What it wants may grow again: where memory is short, others' sequences are emptied.
    priority: higher ones are served first. ended: whether nothing more will come.
    """

    sequence: Sequence
    priority: int

    @property
    def wanted(self) -> list[int]: ...
    @property
    def decoding(self) -> bool: ...
    @property
    def waiting(self) -> bool: ...
    @property
    def ended(self) -> bool: ...

    def start(self) -> None:
        """Before its first step."""

    def stop(self) -> None:
        """It is to end before its next step."""

    def cancel(self) -> None:
        """It is to end now; no step runs it."""

    def ran(self, logits: NDArray[np.float32] | None, seconds: float) -> None:
        """Wanted tokens have run, in a step of so many seconds; logits after the last, if it was among them."""

    def interrupted(self, position: int) -> None:
        """The step that began with so many tokens in its sequence has ended before ``ran`` has; all of it is undone,
        wherever it was."""

    def fail(self, error: Exception) -> None:
        """It cannot go on."""

    def close(self) -> None:
        """It has ended: gives its sequence back, and raises what made it fail."""


class Engine:
    """Steps of all requests of one model. Thread-safe."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.kernels, self.vocab_size = runner.kernels, runner.tape.vocab_size
        # Ctrl-C may come between any two lines. No threading.Condition: its ``with`` and its ``wait`` may end with the
        # lock held, or without it.
        self._lock = threading.RLock()
        self._gate = threading.Lock()  # locked until something changes
        self._gate.acquire()
        self._known: list[weakref.ref[Request]] = []  # who drops a request unfinished wants no more of it
        self._running: list[Request] = []  # in the step that goes on
        self._leader: object | None = None  # who makes a step
        self._logits = self.runner.logits_buffer(1)
        self._decode_s = self._row_s = 0.0  # of a step that only decodes; of a row of a prompt
        self._waiters: dict[Request, list[tuple[AbstractEventLoop, Future[None]]]] = {}
        self._driver: threading.Thread | None = None

    # --- callers --------------------------------------------------------------------------------------------------

    def advance(self, request: Request) -> None:
        """Returns once a request has made something or has ended; makes steps until then, or waits for who does."""
        while request.waiting and not request.ended:
            self.step_with([request])

    def _requests(self) -> list[Request]:
        return [request for request in (known() for known in self._known) if request is not None]

    def step_with(self, requests: Several[Request]) -> None:
        """Makes one step for these requests and all others, or waits for one that somebody makes."""
        me = object()
        try:
            with self._lock:
                for request in requests:
                    self._join(request)
                gate = self._gate
                if self._leader is None:
                    self._leader = me
            if self._leader is me:
                self._step()
            else:
                with gate:
                    pass
        finally:
            try:
                self._over(me)
            except BaseException:  # ctrl-C: others wait for the end of this step
                self._over(me)
                raise

    def _join(self, request: Request) -> None:
        if request not in self._requests():
            self._known.append(weakref.ref(request))

    def _over(self, leader: object) -> None:
        """After a step, by whoever made it; of others it takes no notice."""
        with self._lock:
            if self._leader is leader:
                self._running = []
                self._known = [weakref.ref(request) for request in self._requests() if not request.ended]
                self._wake()
                self._notify()
                self._leader = None  # last: whoever is interrupted before does it all once more

    def withdraw(self, request: Request) -> None:
        """Ends a request, once no step runs it any more: its sequence is its owner's alone then."""
        request.stop()  # or whoever reads it makes one step after the other, and none of them is waited for in time
        while True:
            with self._lock:
                gate = self._gate
                if request not in self._running:
                    if not request.ended:  # before whoever waits for it hears of it, who would ask for more
                        request.cancel()
                    self._known = [weakref.ref(other) for other in self._requests() if other is not request]
                    self._wake()
                    self._notify()
                    return
            with gate:
                pass

    def wait_for(self, request: Request, loop: AbstractEventLoop) -> Future[None]:
        """What an event loop may await until a request has made something or has ended."""
        future = loop.create_future()
        with self._lock:
            self._waiters.setdefault(request, []).append((loop, future))
            self._join(request)
            if self._driver is None or not self._driver.is_alive():
                self._driver = threading.Thread(target=self._drive, name="edgerun-engine", daemon=True)
                self._driver.start()
            self._wake()
            self._notify()
        return future

    def _drive(self) -> None:
        """Makes steps while an event loop waits; ends when none has for a while."""
        while True:
            with self._lock:
                gate, idle = self._gate, not self._waiters
            if idle:
                if gate.acquire(timeout=10.0):
                    gate.release()
                    continue
                with self._lock:
                    if not self._waiters:
                        self._driver = None
                        return
            try:
                self.step_with([])
            except Exception as error:
                with self._lock:
                    for request in list(self._waiters):
                        request.fail(error)
                    self._wake()

    def _notify(self) -> None:
        """Lets all go on who wait; with the lock held. No interrupt comes between the last two lines."""
        fresh = threading.Lock()
        fresh.acquire()
        gate, self._gate = self._gate, fresh
        gate.release()

    def _wake(self) -> None:
        """Tells event loops what they wait for; with the lock held."""
        known = self._requests()
        for request, waiters in list(self._waiters.items()):
            dropped = all(future.done() or loop.is_closed() for loop, future in waiters)  # its task was cancelled
            if dropped or request.ended or not request.waiting or request not in known:
                del self._waiters[request]
                for loop, future in waiters:
                    with contextlib.suppress(RuntimeError):  # it has been closed meanwhile
                        loop.call_soon_threadsafe(_resolve, future)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        with self._lock:
            ready = [request for request in self._requests() if request.waiting and not request.ended]
            if len(ready) > 1:
                ready.sort(key=lambda request: -request.priority)  # among equals, who came first
            self._running = ready
        together: list[Part] = []
        alone: list[Part] = []
        reading: list[Request] = []
        for request in ready:
            request.start()
            if request.ended:
                continue
            if not request.decoding:
                reading.append(request)
            else:
                part = Part(request, request.sequence.position, request.wanted, True, True)
                (alone if request.sequence.sparse else together).append(part)
        start = perf_counter()
        most = self.runner.tape.max_rows
        parts = together[:most]
        if reading:
            parts += self._prompts(reading, most - len(parts), len(together) + len(alone))
        if parts:
            self._run(parts, start)
            self._learn(parts, perf_counter() - start)
        for part in alone:
            self._run([part], perf_counter())

    def _prompts(self, reading: list[Request], room: int, n_decoding: int) -> list[Part]:
        """Which prompts this step reads, and how much of each."""
        if n_decoding and self._row_s:
            room = min(room, max(LEAST_ROWS, int((PATIENCE - 1) * self._decode_s / self._row_s)))
        parts = []
        for request in reading:
            wanted, sequence = request.wanted, request.sequence
            n = min(len(wanted), room, sequence.most_rows(sequence.position))
            if n <= 0:
                break
            parts.append(Part(request, sequence.position, wanted[:n], n == len(wanted), False))
            room -= n
        return parts

    def _learn(self, parts: list[Part], seconds: float) -> None:
        """Remembers how long steps take."""
        last = parts[-1]
        if last.decodes:  # prompts come last
            self._decode_s = seconds if not self._decode_s else 0.8 * self._decode_s + 0.2 * seconds
            return
        n_rows = sum(len(part.tokens) for part in parts if not part.decodes)
        if n_rows >= LEAST_ROWS:
            rest = seconds - (self._decode_s if parts[0].decodes else 0.0)
            row = max(rest, 0.1 * seconds) / n_rows
            self._row_s = row if not self._row_s else 0.8 * self._row_s + 0.2 * row

    def _run(self, wanted: list[Part], start: float) -> None:
        """One run."""
        batch: list[Rows] = []
        parts: list[Part] = []
        n_out = at = given = 0
        for part in wanted:
            rows = self._begin(part, parts)
            if rows is not None:
                batch.append(rows)
                parts.append(part)
                n_out += part.out
        if not batch:
            return
        if n_out > len(self._logits):
            self._logits = self.runner.logits_buffer(max(n_out, 2 * len(self._logits)))
        first = parts[0]
        sequence = first.request.sequence
        try:
            if first.decodes and sequence.sparse:
                self.runner.run(batch, self._logits, sequence.policy, sequence.running)
            else:
                self.runner.run(batch, self._logits)
            for part in parts:
                part.request.sequence.done(part.tokens)
                part.request.ran(self._logits[at] if part.out else None, perf_counter() - start)
                at += part.out
                given += 1
        except BaseException:  # ctrl-C, in whoever makes this step: the requests that it has not reached run again
            for part in parts[given:]:
                part.request.interrupted(part.position)
            raise

    def _begin(self, part: Part, running: list[Part]) -> Rows | None:
        """Room for the tokens; where the cache is full, others start again later, see ``_make_room``. None where this
        one has to wait, or cannot go on."""
        request = part.request
        while request.sequence.position == part.position:  # else it has made room for another
            try:
                return request.sequence.begin(part.tokens, int(part.out), part.decodes)
            except CacheFullError as error:
                if not self._make_room(request, [other.request for other in running]):
                    higher = self._running[: self._running.index(request)]
                    if not running and not any(other.sequence.pages and not other.ended for other in higher):
                        request.fail(error)
                    return None
            except EdgerunError as error:
                request.fail(error)
                return None
        return None

    def _make_room(self, request: Request, running: list[Request]) -> bool:
        """Empties the sequence of a request that is in no run: of one that nobody waits for, or that ranks below this
        one; those above it are never emptied, so that the first of all goes on. False where there is none."""
        with self._lock:
            spared = [*running, *self._running[: self._running.index(request) + 1]]
            others = [r for r in self._requests() if r not in spared and r.sequence.pages and not r.ended]
            if not others:
                return False
            # What a policy of decoding has seen has other keys where it is computed again as a prompt: the last to go.
            again = [r for r in others if not (r.sequence.acts_in_decoding and r.decoding)]
            min(reversed(again or others), key=lambda r: r.priority).sequence.rewind(0)
            return True


def _resolve(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)

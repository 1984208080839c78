"""The thread team: persistent workers that run a tape together with the calling thread.

The compiled half (``team_loop.py``) spins, yields and parks; this half owns the threads and the semaphores on which
parked workers sleep, and says how many threads a job takes. One job at a time: callers take turns. All models of a
process have one team (``join_team``), so that they do not run beside each other on the same processors.
"""

import ctypes
import os
import threading
from time import perf_counter
from typing import Any

from ..build.load import Kernels
from ..memory import aligned
from ..record import Control, Run
from .width import Width

MAX_THREADS = 64


class Team:
    """``n_threads`` threads in all: the caller and n_threads - 1 daemons. Raises ValueError outside 1..64."""

    def __init__(self, kernels: Kernels, n_threads: int) -> None:
        if not 1 <= n_threads <= MAX_THREADS:
            raise ValueError(f"threads must be between 1 and {MAX_THREADS}, not {n_threads}")
        self.kernels = kernels
        self.n_threads = n_threads
        self._lock = threading.Lock()
        self._closed = False
        self._start()

    def _start(self) -> None:
        """Sets up a fresh control block and starts the workers (again in a forked child, where threads do not live)."""
        self._pid = os.getpid()
        self._block = aligned(Control.WORKERS + Control.WORKER_STRIDE * MAX_THREADS)
        self._address = int(self._block.ctypes.data)
        self.barrier = self._address + Control.BARRIER
        self._width = Width(self.n_threads)
        self._wake = [threading.Semaphore(0)]
        self._start_workers()

    def _start_workers(self) -> None:
        while len(self._wake) < self.n_threads:
            tid = len(self._wake)
            self._wake.append(threading.Semaphore(0))
            args = (self.kernels, self._block, self._wake[tid], tid)
            threading.Thread(target=_work, args=args, name=f"edgerun-{tid}", daemon=True).start()

    def grow(self, n_threads: int) -> None:
        """Has at least so many threads from now on; none where it is closed."""
        with self._lock:
            if n_threads > self.n_threads and not self._closed:
                self.n_threads = n_threads
                if os.getpid() == self._pid:
                    self._start_workers()

    def run(self, tape: int, n_ops: int, run: int, width: Width | None = None, n_threads: int | None = None) -> None:
        """Runs ``n_ops`` records at address ``tape`` for the run record at address ``run``; returns when all is done.

        width: says how many threads take part, and learns how long that took; runs of one width are to be alike.
        n_threads: without a width, how many; by default as one width of the team's own says for one row, all for
        several. Sets the run record's barrier field. Thread-safe. The memory must stay alive until the call returns.
        """
        if os.getpid() != self._pid:  # another thread of the parent may have held the lock when it forked
            self._lock = threading.Lock()
            self._start()
        with self._lock:
            if self._closed:
                raise RuntimeError("the thread team is closed")
            ctypes.c_int64.from_address(run + 8 * Run.BARRIER).value = self.barrier
            if width is None and n_threads is None:
                one_row = ctypes.c_int64.from_address(run + 8 * Run.N_ROWS).value == 1
                width, n_threads = (self._width, None) if one_row else (None, self.n_threads)
            if width is not None:
                n_threads = width.now
            assert n_threads is not None
            stalled = self._field(Control.STALLED)
            stalled.value = self._field(Control.DISTRUST).value = 0
            start = perf_counter()
            try:
                if self.kernels.team_start(self._address, tape, n_ops, run, n_threads):
                    self._finish()
            except BaseException:
                # ctrl-C may come between two calls: the workers are under way and must not be left alone in a barrier.
                if self._field(Control.UNFINISHED).value:
                    self._finish()
                raise
            if width is not None:
                width.ran(perf_counter() - start, stalled.value == 1)

    def _field(self, offset: int) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self._address + offset)

    def _finish(self) -> None:
        """Wakes the parked workers (once too often does no harm) and does the caller's part of the job."""
        self._release(self._field(Control.PARKED).value)
        self.kernels.team_finish(self._address)

    def _release(self, parked: int) -> None:
        for tid in range(1, self.n_threads):
            if parked >> tid & 1:
                self._wake[tid].release()

    def close(self) -> None:
        """Ends the workers. Idempotent."""
        with self._lock:
            if not self._closed and os.getpid() == self._pid:
                self._release(self.kernels.team_stop(self._address, self.n_threads))
            self._closed = True


_joined: dict[Kernels, tuple[Team, int]] = {}
_joining = threading.Lock()


def join_team(kernels: Kernels, n_threads: int) -> Team:
    """The team of this process, with at least ``n_threads`` threads; ``leave_team`` when it is needed no more."""
    with _joining:
        team, members = _joined.get(kernels) or (Team(kernels, n_threads), 0)
        team.grow(n_threads)
        _joined[kernels] = team, members + 1
        return team


def leave_team(team: Team) -> None:
    """Ends the team where nobody else has joined it."""
    with _joining:
        _, members = _joined[team.kernels]
        if members > 1:
            _joined[team.kernels] = team, members - 1
        else:
            del _joined[team.kernels]
            team.close()


def _work(kernels: Kernels, block: Any, wake: threading.Semaphore, tid: int) -> None:
    """A worker: holds the control block alive, sleeps while parked."""
    address = int(block.ctypes.data)
    while kernels.team_worker(address, tid):
        wake.acquire()

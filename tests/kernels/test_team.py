"""The thread team: many jobs from many threads, parking and waking, fewer threads, interrupts, forks."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import numpy as np
import pytest

from edgerun_kernels.memory import aligned
from edgerun_kernels.record import ROWS, Control, Run
from edgerun_kernels.registry import Op, record
from edgerun_kernels.runtime.team import Team
from edgerun_kernels.runtime.width import Width

from .harness import ISAS, Memory, address, linear_op, loaded, tape

LINES = 64


class Job:
    """Reads ones, so that each thread's sum says which part of the memory it took."""

    def __init__(self, n_threads: int, ops: int = 3, rows: int = 1) -> None:
        self.memory = aligned(64 * LINES)
        self.memory.view(np.int32)[:] = 1
        self.sums = aligned(64 * n_threads)
        self.tape = np.stack([record(Op.READ_MEMORY, BARRIER=1, W=self.memory.ctypes.data, LINES=LINES)] * ops)
        self.record = np.zeros(Run.COUNT, np.int64)
        self.record[Run.ARENA], self.record[Run.N_ROWS] = self.sums.ctypes.data, rows

    def run(self, team: Team) -> None:
        self.sums[:] = 0
        team.run(int(self.tape.ctypes.data), len(self.tape), int(self.record.ctypes.data))
        assert self.sums.view(np.int32).sum() == 16 * LINES

    def threads(self) -> list[int]:
        """Those that took part in the last run."""
        return np.flatnonzero(self.sums.view(np.int32)[::16]).tolist()


@pytest.fixture(params=[1, 2, 3, 8])
def team(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Teams that take all their threads, whatever stalls."""
    team = Team(loaded(ISAS[0]), request.param)
    monkeypatch.setattr(team._width, "ran", lambda seconds, stalled: None)
    yield team
    team.close()


def test_many_short_jobs(team: Team) -> None:
    job = Job(team.n_threads)
    for _ in range(200):
        job.run(team)
        assert job.threads() == list(range(team.n_threads))


def test_the_number_of_threads_changes_from_job_to_job(team: Team) -> None:
    """At once and after a rest, in which those that were not called have parked: they are called all the same."""
    one_row, rows = Job(team.n_threads), Job(team.n_threads, rows=2)
    chance = random.Random(0)
    for i in range(300):
        team._width.now = chance.randint(1, team.n_threads)
        wanted = list(range(team._width.now))
        one_row.run(team)
        assert one_row.threads() == wanted
        if i % 50 == 0:
            time.sleep(0.02)
        if i % 10 == 0:
            rows.run(team)
            assert rows.threads() == list(range(team.n_threads))


def test_a_thread_that_waits_for_long_says_so(team: Team) -> None:
    """One block of rows is one thread's work, here some milliseconds of it; the others lose their patience."""
    k = 1 << 20
    with Memory() as memory:
        x, y = memory.hold(np.ones((1, k), np.float32)), memory.hold(np.zeros((1, ROWS), np.float32))
        w = {"w": np.ones(k * ROWS, np.float32)}
        ops = tape(linear_op(memory, Op.LINEAR_F32, x, y, w, ROWS, k, BARRIER=1))
        team.run(address(ops), 1, memory.run(N_ROWS=1))
        assert (y == k).all()
    assert team._field(Control.STALLED).value == (team.n_threads > 1)


def test_stalls_leave_threads_out_until_there_are_none(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside a busy core: each run with all threads stalls and takes three times as long."""
    job, width, busy = Job(team.n_threads), Width(team.n_threads), True

    def ran(seconds: float, stalled: bool) -> None:
        stalled = busy and 1 < team.n_threads == width.now
        Width.ran(width, 3.0 if stalled else 1.0, stalled)

    def widths(runs: int) -> list[int]:
        taken = []
        for _ in range(runs):
            job.run(team)
            taken.append(len(job.threads()))
        return taken

    monkeypatch.setattr(width, "ran", ran)
    monkeypatch.setattr(team, "_width", width)
    first, *rest = widths(200)
    assert first == team.n_threads
    assert team.n_threads == 1 or rest.count(team.n_threads) < 10
    busy = False
    assert widths(100)[-20:] == [team.n_threads] * 20


def test_workers_park_and_wake(team: Team) -> None:
    job = Job(team.n_threads)
    for _ in range(4):
        job.run(team)
        time.sleep(0.05)
    parked = team._block.view(np.int64)[(Control.WORKERS + Control.WORKER_STRIDE * 1) // 8 :: 8]
    deadline = time.monotonic() + 10
    while not parked[: team.n_threads - 1].all() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert parked[: team.n_threads - 1].all(), "idle workers must sleep"
    job.run(team)


def test_callers_take_turns(team: Team) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        job = Job(team.n_threads)
        try:
            for _ in range(50):
                job.run(team)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("asleep", [False, True])
def test_an_interrupt_leaves_no_worker_in_a_barrier(team: Team, asleep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C right after the job was published: it is finished all the same, and the next one runs."""
    job = Job(team.n_threads)
    job.run(team)
    if asleep:
        time.sleep(0.05)
    start = team.kernels.team_start

    def interrupted(*args: int) -> int:
        start(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(team.kernels, "team_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.run(team)
    job.run(team)


def test_a_forked_child_starts_its_own_workers(team: Team) -> None:
    job = Job(team.n_threads)
    job.run(team)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            job.run(team)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    job.run(team)


def test_a_closed_team_says_so(team: Team) -> None:
    job = Job(team.n_threads)
    before = threading.active_count()
    team.close()
    team.close()
    with pytest.raises(RuntimeError, match="closed"):
        job.run(team)
    deadline = time.monotonic() + 5
    while threading.active_count() > before - (team.n_threads - 1) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before - (team.n_threads - 1)


@pytest.mark.parametrize("n_threads", [0, -1, 65])
def test_impossible_numbers_of_threads(n_threads: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 64"):
        Team(loaded(ISAS[0]), n_threads)

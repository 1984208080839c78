"""How many threads run one row, played through on machines that exist in a few lines only."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from edgerun_kernels.runtime.width import GOOD_RUNS, LONGEST_FEWER, LONGEST_MORE, OF_LAST, SHORTEST, STALLS, Width


@dataclass
class Machine:
    """A run on free cores takes 1 / threads, and as long again and longer where a thread lands on a busy one. lucky:
    the share of runs in which that thread is not held up."""

    cores: int
    busy: int = 0
    lucky: float = 0.0

    def play(self, width: Width, runs: int) -> list[int]:
        chance, taken = random.Random(0), []
        for _ in range(runs):
            n = width.now
            assert 1 <= n <= self.cores
            taken.append(n)
            stalled = n > 1 and n > self.cores - self.busy and chance.random() >= self.lucky
            width.ran((2.1 + chance.random() if stalled else 1) / n, stalled)
        return taken


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_a_quiet_machine_takes_all_threads(cores: int) -> None:
    assert Machine(cores).play(Width(cores), 500) == [cores] * 500


@pytest.mark.parametrize("cores", [2, 8])
def test_stalls_that_come_alone_change_nothing(cores: int) -> None:
    width = Width(cores)
    for i in range(500):
        width.ran(3.0 if i % OF_LAST == 0 else 1.0, i % OF_LAST == 0)
        assert width.now == cores


@pytest.mark.parametrize("cores", [2, 8])
def test_a_few_stalls_are_soon_forgotten(cores: int) -> None:
    width = Width(cores)
    for _ in range(STALLS):
        width.ran(3.0, True)
    taken = Machine(cores).play(width, 100)
    assert taken[0] == cores - 1
    assert taken[SHORTEST + GOOD_RUNS + 1 :] == [cores] * (99 - SHORTEST - GOOD_RUNS)


@pytest.mark.parametrize("lucky", [0.0, 0.5])
@pytest.mark.parametrize(("cores", "busy"), [(2, 1), (2, 2), (8, 1), (8, 2), (8, 3), (16, 4)])
def test_busy_cores_are_left_alone_until_they_are_free(cores: int, busy: int, lucky: float) -> None:
    width, free = Width(cores), max(1, cores - busy)
    taken = Machine(cores, busy, lucky).play(width, 4000)
    assert sum(n > free for n in taken) < 4000 * (0.05 if lucky else 0.03)
    assert sum(n == free for n in taken) > 3600
    taken = Machine(cores).play(width, LONGEST_MORE + 20 * busy)
    assert taken[-1] == cores
    assert taken == sorted(taken)


def test_stalls_that_fewer_threads_do_not_cure() -> None:
    """Cores of different speed, say: every run stalls, and fewer threads are slower."""
    width, taken = Width(8), []
    for _ in range(4 * LONGEST_FEWER):
        taken.append(width.now)
        width.ran(1 / width.now, True)
    assert sum(n < 8 for n in taken[LONGEST_FEWER:]) < len(taken) / 50


def test_sessions_of_different_length_in_turn() -> None:
    """Back to all threads, though every other run is a slower session's."""
    width = Width(2)
    for _ in range(STALLS):
        width.ran(9.0, True)
    assert width.now == 1
    for i in range(4 * LONGEST_MORE):
        width.ran((2 + i % 2 * 3) / width.now, False)
    assert width.now == 2

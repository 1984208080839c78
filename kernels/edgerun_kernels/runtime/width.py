"""How many threads of a team run one row: fewer where another program has taken the processor of one of them.

Threads that share a tape wait for the slowest several times a layer, so a thread whose processor is busy holds up all
the others, for longer than its share of the work is worth. Runs in which a wait outlasted the barrier's patience are
the reason to try fewer threads; whether they are faster is measured, because cores may also differ in speed for good.
Results do not depend on it: a row is the same bits at every number of threads.
"""

STALLS, OF_LAST = 2, 4
"""So many of the last runs make it worth a trial. One alone is the system's own doing, which takes a processor for some
milliseconds a few times a second: fewer threads would be slower for the runs that follow."""

GOOD_RUNS = 4
"""Runs with one thread more before it is kept: the system lets one that has just woken go first."""
SHORTEST = 4
LONGEST_MORE, LONGEST_FEWER = 64, 256
"""Runs from a trial that failed to the next: each time four times as many. Soon back to all threads; more rarely away
from them, where waits are long for reasons that fewer threads do not cure."""


class Trials:
    """When to try again in one direction."""

    def __init__(self, longest: int) -> None:
        self._rest, self._pause, self._longest = 0, SHORTEST, longest

    def due(self) -> bool:
        """Asked after every run from which a trial could begin."""
        self._rest = max(0, self._rest - 1)
        return self._rest == 0

    def failed(self) -> None:
        self._rest, self._pause = self._pause, min(4 * self._pause, self._longest)

    def succeeded(self) -> None:
        self._rest, self._pause = 0, SHORTEST


class Width:
    """``now``: the number of threads for the next run of one row, 1 to ``most``; it starts there."""

    def __init__(self, most: int) -> None:
        self.now = self._kept = self.most = most
        self._seconds = 0.0  # of the last run with as many as are kept
        self._good, self._recent = 0, 0  # the second: which of the last runs stalled, in bits
        self._fewer, self._more = Trials(LONGEST_FEWER), Trials(LONGEST_MORE)

    def ran(self, seconds: float, stalled: bool) -> None:
        """What came of a run with ``now`` threads, and whether any of them lost its patience."""
        slower = seconds >= self._seconds
        self._recent = (self._recent << 1 | stalled) % (1 << OF_LAST)
        if self.now == self._kept:
            self._seconds, self._good = seconds, 0
            more, fewer = self._more.due(), self._fewer.due()
            if stalled and self._recent.bit_count() >= STALLS and fewer and self.now > 1:
                self.now -= 1
            elif more and self.now < self.most:
                self.now += 1
        elif self.now < self._kept:
            if stalled and seconds < 2 * self._seconds:  # on down: several processors may be busy
                self.now -= 1
            else:
                self._decide(self._fewer, self._more, not slower)
        elif stalled and slower:
            self._decide(self._more, self._fewer, False)
        else:
            self._good += 1
            if self._good == GOOD_RUNS:
                self._decide(self._more, self._fewer, True)

    def _decide(self, trials: Trials, opposite: Trials, good: bool) -> None:
        if good:
            trials.succeeded()
            opposite.failed()
            self._kept = self.now
        else:
            trials.failed()
            self.now = self._kept

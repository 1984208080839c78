"""Runs of a tape: the team, the arena, and the tables that all sequences of a model share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgerun.engine.batch import Rows, RunRecord
from edgerun.engine.rotary import RotaryTable
from edgerun.errors import EdgerunError
from edgerun.program.tape import Tape
from edgerun.sparsity.policy import Policy
from edgerun_kernels.build.load import Kernels
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import DRAFT_ROWS, WINDOW_BYTES, Run
from edgerun_kernels.runtime.team import join_team, leave_team
from edgerun_kernels.runtime.width import Width


class Runner:
    """What a model runs with. Thread-safe: runs take turns.

    profile: where every run of a tape with n_ops ops adds, int64 [2, n_ops], the ticks that each took, and the columns
    that it read where it leaves out some; None: nothing is measured. stops: what every run calls, with its run record,
    before the op of that index, while no thread computes; for calibration, which reads there what the arena holds.
    """

    def __init__(self, tape: Tape, kernels: Kernels, threads: int) -> None:
        self.tape, self.kernels = tape, kernels
        self.profile: NDArray[np.int64] | None = None
        self.stops: dict[int, Callable[[NDArray[np.int64]], None]] = {}
        self._arena = aligned(tape.arena_bytes + WINDOW_BYTES)
        self._record = RunRecord(tape.max_rows)
        self._rope = RotaryTable(tape.inv_freq)
        self._turn = threading.Lock()
        self._team, self._threads = join_team(kernels, threads), threads
        self._widths: dict[int, Width] = {}
        self._closed = False

    def logits_buffer(self, rows: int) -> NDArray[np.float32]:
        """Room for the logits of so many rows: float32 [rows, tape.logits_stride], aligned as kernels want it."""
        stride = self.tape.logits_stride
        return aligned(4 * rows * stride).view(np.float32).reshape(rows, stride)

    def run(
        self,
        batch: Sequence[Rows],
        logits: NDArray[np.float32],
        sparsity: Policy | None = None,
        running: NDArray[np.uint8] | None = None,
    ) -> None:
        """One run of the tape over rows of one or several sequences, at most tape.max_rows together.

        logits: [>= sum of n_out, tape.logits_stride], written for the wanted rows, in their order. sparsity:
        which columns it leaves unread where one token runs, and running: its state_bytes, if there are any.
        Raises EdgerunError once it is closed. Nothing else is checked here.
        """
        ops = self.tape.ops
        arena_bytes = self.tape.arena_bytes if sparsity is None else sparsity.arena_bytes
        with self._turn:
            if self._closed:
                raise EdgerunError("the model is closed; load it again")
            self._rope.reach(max(rows.position + len(rows.tokens) for rows in batch))
            if arena_bytes + WINDOW_BYTES > len(self._arena):
                self._arena = aligned(arena_bytes + WINDOW_BYTES)
            self._record.fill(batch)
            record = self._record.fields
            record[Run.ARENA] = self._arena.ctypes.data
            record[Run.LOGITS] = logits.ctypes.data
            record[Run.COS] = self._rope.cos.ctypes.data
            record[Run.SIN] = self._rope.sin.ctypes.data
            record[Run.SPARSITY] = 0 if sparsity is None else sparsity.table.ctypes.data
            record[Run.RUNNING] = 0 if running is None else running.ctypes.data
            measured = self.profile is not None and self.profile.shape[1] == len(ops)
            record[Run.PROFILE] = self.profile.ctypes.data if measured else 0  # type: ignore[union-attr]
            if self.stops:
                self._run_in_parts(ops)
            else:
                self._team.run(int(ops.ctypes.data), len(ops), self._record.address, *self._taking(record[Run.N_ROWS]))

    def _taking(self, rows: int) -> tuple[Width | None, int | None]:
        """Which threads run so many rows: where few do, waits are short, and a busy processor would hold up all."""
        if rows > DRAFT_ROWS:
            return None, self._threads
        width = self._widths.get(rows)
        if width is None:
            width = self._widths[rows] = Width(self._threads)
        return width, None

    def _run_in_parts(self, ops: NDArray[np.int64]) -> None:
        """By all threads: each finds in a later part what it has made for itself in an earlier one."""
        start = 0
        for stop in (*sorted(self.stops), len(ops)):
            address = int(ops[start:].ctypes.data)
            self._team.run(address, stop - start, self._record.address, n_threads=self._threads)
            if stop < len(ops):
                self.stops[stop](self._record.fields)
            start = stop

    def close(self) -> None:
        """Ends the threads, where no other model runs with them. Idempotent."""
        with self._turn:
            closed, self._closed = self._closed, True
        if not closed:
            leave_team(self._team)

    def __del__(self) -> None:
        if hasattr(self, "_widths"):
            self.close()

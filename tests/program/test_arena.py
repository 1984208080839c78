"""Planning activation buffers: reused after a barrier, never by rows of another width."""

from __future__ import annotations

from edgerun.program.arena import Arena


def test_a_buffer_is_free_only_after_a_barrier() -> None:
    arena = Arena(max_rows=4, n_threads=2)
    first = arena.take(64, 256)
    arena.give(first, 64)
    assert arena.take(64, 256) != first
    arena.barrier()
    assert arena.take(64, 256) == first


def test_padding_that_another_width_has_written_is_not_taken_for_zeros() -> None:
    arena = Arena(max_rows=1, n_threads=1)
    wide = arena.take(60, 256)
    arena.give(wide, 60)
    arena.barrier()
    assert arena.take(40, 256) != wide
    assert arena.take_tiles(60, 256, 256) != wide


def test_every_thread_has_room_for_a_row() -> None:
    arena = Arena(max_rows=1, n_threads=3)
    arena.take(64, 256)
    assert arena.size == 3 * 256

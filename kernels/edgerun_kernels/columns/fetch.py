"""How columns are fetched ahead of the loads.

A prefetch into the second cache is dropped where the processor has no room to note it: on Zen 4 most are where columns
are short, so that its own prefetching hardly sets in (prefetches alone "fetched" three times what memory gives). So
every line is asked for two or three times, from further and from nearer. What is to be read once, through the first
cache, is never dropped, but only half as many lines can be under way: good for what the others have left, where that is
few enough lines to stay there. Against asking once, columns of 1 KiB were read 1.35 times as fast, of 8 KiB 1.05.
"""

from ..kernel import inner
from ..record import COLUMN_AHEAD
from ..simd.ops import load_i64, prefetch_far, prefetch_once

LONG = 1280
"""Bytes of a column from which it is long: the processor's own prefetching serves most of it."""
AHEAD, LONG_AHEAD = (tuple(8 * columns for columns in some) for some in ((16, 32, COLUMN_AHEAD), (0, 16, 28)))
"""How far ahead of the loads columns are looked up, in bytes of a list of addresses: those that come through the first
cache, and twice those that come into the second."""


@inner
def distances(column_bytes):
    """For ``fetch_columns``."""
    return AHEAD if column_bytes < LONG else LONG_AHEAD


@inner
def fetch_columns(four, at, ahead):
    """A line, at ``at``, of the columns that follow the four in a list of addresses; not for its second half."""
    if at & 32 != 0:
        return
    near, far, farther = ahead
    for j in range(0, 32, 8):
        prefetch_once(load_i64(four + near + j) + at)
        prefetch_far(load_i64(four + far + j) + at)
        prefetch_far(load_i64(four + farther + j) + at)


@inner
def fetch_first(addresses, total, ahead, begin, end):
    """Of the columns that a list of ``total`` begins with, the bytes from ``begin`` to ``end``."""
    for i in range(min(ahead[1] // 8, total)):
        for at in range(begin, end, 64):
            prefetch_far(load_i64(addresses + 8 * i) + at)


@inner
def four_from(four, at):
    """Addresses of the lines at ``at`` of four columns in a list."""
    return load_i64(four) + at, load_i64(four + 8) + at, load_i64(four + 16) + at, load_i64(four + 24) + at

"""What a row attends to of a head: its *entries*, 16 a block, in steps of CHUNK; a policy may have left out some.

Mode.ALL: every position. Mode.PAGES (a row that is decoded): the blocks that were chosen; a layer that chose them, too,
reads no more while its choice stands. Mode.RUNS: runs of positions, then, from the next step on, every position from
EXACT_TO on; places between the last run and that step are empty.

``sequence`` is everywhere the address of the row's Sequence record: its sequence's pages and what its policies keep.
"""

from ..kernel import inner
from ..layouts import Attention
from ..record import BLOCK, CHUNK, MAX_CHUNKS, PAGE, LayerState, Mode, Sequence
from ..simd.ops import field, load_i64, store_i64

PAGES, RUNS = int(Mode.PAGES), int(Mode.RUNS)
PAGE_BLOCKS = PAGE // BLOCK
STEP_BLOCKS = CHUNK // BLOCK
MOST_ALIKE = CHUNK * MAX_CHUNKS
"""Positions that follow each other from a multiple of this on have parts of one length."""


@inner
def part_length(position):
    """Entries in a part of those of the row at a position: as few as make at most MAX_CHUNKS of all."""
    return CHUNK * (position // MOST_ALIKE + 1)


@inner
def rows_alike(position, rows):
    """How many of ``rows`` from a position on have parts of one length."""
    return min(rows, MOST_ALIKE - position % MOST_ALIKE)


@inner
def layer_state(op, sequence):
    """The address of the LayerState; only where the sequence has a policy."""
    return field(sequence, Sequence.ATTENTION) + field(op, Attention.STATE)


@inner
def block_address(op, sequence, kv_head, block):
    """Where positions [16 block, 16 block + 16) of a head lie."""
    page = load_i64(field(sequence, Sequence.PAGES) + 8 * (block // PAGE_BLOCKS))
    head_bytes = field(op, Attention.KV_HEAD_BYTES)
    return page + field(op, Attention.LAYER) + kv_head * head_bytes + block % PAGE_BLOCKS * (head_bytes // PAGE_BLOCKS)


@inner
def mode(op, sequence):
    """The Mode of a layer."""
    return field(layer_state(op, sequence), LayerState.MODE) if field(sequence, Sequence.ATTENTION) != 0 else 0


@inner
def selects(op, sequence):
    """Whether a layer is one that chooses pages, for a row that is decoded."""
    if field(sequence, Sequence.ATTENTION) == 0 or field(sequence, Sequence.DECODES) == 0:
        return False
    return field(layer_state(op, sequence), LayerState.EXPORT) != 0


@inner
def exports(op, sequence):
    """Whether a layer selects, and does so now."""
    return selects(op, sequence) and field(layer_state(op, sequence), LayerState.HELD) == 0


@inner
def reads_pages(op, sequence):
    """Whether a layer reads chosen blocks alone."""
    if field(sequence, Sequence.DECODES) == 0:
        return False
    return mode(op, sequence) == PAGES or (selects(op, sequence) and not exports(op, sequence))


@inner
def reads_runs(op, sequence):
    """Whether a layer reads runs."""
    return mode(op, sequence) == RUNS and not reads_pages(op, sequence)


@inner
def runs_end(op, sequence, kv_head):
    """How many runs a head has."""
    if not reads_runs(op, sequence):
        return 0
    return load_i64(field(layer_state(op, sequence), LayerState.COUNTS) + 8 * kv_head)


@inner
def runs_padded(op, sequence, kv_head):
    """Entries up to the first that is a position of its own."""
    return (runs_end(op, sequence, kv_head) + CHUNK - 1) // CHUNK * CHUNK


@inner
def first_exact(op, sequence):
    """The position of that entry."""
    return field(layer_state(op, sequence), LayerState.EXACT_TO) if reads_runs(op, sequence) else 0


@inner
def entries_of(op, sequence, kv_head, position):
    """Entries of a head, up to the position of a row."""
    if reads_pages(op, sequence):
        chosen = field(layer_state(op, sequence), LayerState.CHOSEN)
        return (load_i64(chosen) - 1) * BLOCK + position % BLOCK + 1
    return runs_padded(op, sequence, kv_head) + position + 1 - first_exact(op, sequence)


@inner
def n_parts(op, sequence, kv_head, position):
    """Into how many parts the entries of a head are split for the row at a position."""
    length = part_length(position)
    return (entries_of(op, sequence, kv_head, position) + length - 1) // length


@inner
def locate(op, sequence, kv_head, start, out):
    """The addresses of the blocks of the step that begins with entry ``start``: int64 [CHUNK / 16]. Where there are
    fewer, some that may be read too."""
    first = start // BLOCK
    if reads_pages(op, sequence):
        chosen = field(layer_state(op, sequence), LayerState.CHOSEN)
        last = load_i64(chosen) - 1
        for i in range(STEP_BLOCKS):
            block = load_i64(chosen + 8 + 8 * min(first + i, last))
            store_i64(out + 8 * i, block_address(op, sequence, kv_head, block))
        return
    runs = runs_padded(op, sequence, kv_head)
    if start < runs:
        layer = layer_state(op, sequence)
        blocks = field(layer, LayerState.BLOCKS) + 8 * kv_head * field(layer, LayerState.MOST_BLOCKS)
        last = (runs_end(op, sequence, kv_head) - 1) // BLOCK
        for i in range(STEP_BLOCKS):
            store_i64(out + 8 * i, load_i64(blocks + 8 * min(first + i, last)))
        return
    address = block_address(op, sequence, kv_head, (start - runs + first_exact(op, sequence)) // BLOCK)
    block_bytes = field(op, Attention.KV_HEAD_BYTES) // PAGE_BLOCKS
    for i in range(STEP_BLOCKS):  # a step lies within a page
        store_i64(out + 8 * i, address + i * block_bytes)

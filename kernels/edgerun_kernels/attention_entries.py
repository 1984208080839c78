"""What attention reads of a head: its *entries*, 16 a block, in steps of CHUNK; a policy may have left out some.

Mode.ALL: every position. Mode.PAGES (one row): the blocks that were chosen; a layer that chose them, too, reads no more
while its choice stands. Mode.RUNS: runs of positions, then, from the next step on, every position from EXACT_TO on;
places between the last run and that step are empty.
"""

from .kernel import inner
from .record import BLOCK, CHUNK, PAGE, Field, LayerState, Mode, Run
from .simd.ops import field, load_i64, store_i64

PAGES, RUNS = int(Mode.PAGES), int(Mode.RUNS)
PAGE_BLOCKS = PAGE // BLOCK
STEP_BLOCKS = CHUNK // BLOCK


@inner
def layer_state(op, run):
    """The address of the LayerState; only where a policy is at work."""
    return field(run, Run.ATTENTION) + field(op, Field.STATE)


@inner
def block_address(op, run, kv_head, block):
    """Where positions [16 block, 16 block + 16) of a head lie."""
    page = load_i64(field(run, Run.PAGES) + 8 * (block // PAGE_BLOCKS))
    head_bytes = field(op, Field.KV_HEAD_BYTES)
    return page + field(op, Field.LAYER) + kv_head * head_bytes + block % PAGE_BLOCKS * (head_bytes // PAGE_BLOCKS)


@inner
def exports(op, run):
    """Whether a layer selects, and does so now; where one row runs."""
    return field(op, Field.EXPORT) != 0 and field(layer_state(op, run), LayerState.HELD) == 0


@inner
def reads_pages(op, run):
    if field(run, Run.N_ROWS) != 1:
        return False
    return field(op, Field.MODE) == PAGES or (field(op, Field.EXPORT) != 0 and not exports(op, run))


@inner
def reads_runs(op, run):
    return field(op, Field.MODE) == RUNS and not reads_pages(op, run)


@inner
def runs_end(op, run, kv_head):
    """How many runs a head has."""
    if not reads_runs(op, run):
        return 0
    return load_i64(field(layer_state(op, run), LayerState.COUNTS) + 8 * kv_head)


@inner
def runs_padded(op, run, kv_head):
    """Entries up to the first that is a position of its own."""
    return (runs_end(op, run, kv_head) + CHUNK - 1) // CHUNK * CHUNK


@inner
def first_exact(op, run):
    """The position of that entry."""
    return field(layer_state(op, run), LayerState.EXACT_TO) if reads_runs(op, run) else 0


@inner
def entries_of(op, run, kv_head):
    """Entries of a head, up to the newest position, where one row runs."""
    position = field(run, Run.POSITION)
    if reads_pages(op, run):
        chosen = field(layer_state(op, run), LayerState.CHOSEN)
        return (load_i64(chosen) - 1) * BLOCK + position % BLOCK + 1
    return runs_padded(op, run, kv_head) + position + 1 - first_exact(op, run)


@inner
def locate(op, run, kv_head, start, out):
    """The addresses of the blocks of the step that begins with entry ``start``: int64 [CHUNK / 16]. Where there are
    fewer, some that may be read too."""
    first = start // BLOCK
    if reads_pages(op, run):
        chosen = field(layer_state(op, run), LayerState.CHOSEN)
        last = load_i64(chosen) - 1
        for i in range(STEP_BLOCKS):
            block = load_i64(chosen + 8 + 8 * min(first + i, last))
            store_i64(out + 8 * i, block_address(op, run, kv_head, block))
        return
    runs = runs_padded(op, run, kv_head)
    if start < runs:
        layer = layer_state(op, run)
        blocks = field(layer, LayerState.BLOCKS) + 8 * kv_head * field(layer, LayerState.MOST_BLOCKS)
        last = (runs_end(op, run, kv_head) - 1) // BLOCK
        for i in range(STEP_BLOCKS):
            store_i64(out + 8 * i, load_i64(blocks + 8 * min(first + i, last)))
        return
    address = block_address(op, run, kv_head, (start - runs + first_exact(op, run)) // BLOCK)
    block_bytes = field(op, Field.KV_HEAD_BYTES) // PAGE_BLOCKS
    for i in range(STEP_BLOCKS):  # a step lies within a page
        store_i64(out + 8 * i, address + i * block_bytes)

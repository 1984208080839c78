"""The records that the compiled code reads beside ops' own (see ``layouts``): one per run, per sequence, per team. All
fields are int64.

An op record says what to do, with absolute addresses for weights and byte offsets into the session's arena for
activations; a run record says for which session, how many rows and at which position. Kernels trust both.
"""

from enum import IntEnum

ROWS = 16
"""Weight rows that lie interleaved."""
GROUP = 32
"""Columns that share a scale, and activations that share a scale."""
PAGE = 256
"""Positions in a page of the KV cache."""
BLOCK = 16
"""Positions whose keys and values lie together in it."""
TILE_ROWS = 4
"""Rows that a linear layer takes through the weights together, and that lie together when they are quantised."""
QUERY_TILE = 4
"""Query heads of a token that attention takes through the keys together, at most."""
PREFILL_TILE = 8
"""Query rows that prefill attention takes through the keys together."""
MAX_CHUNKS = 16
"""Parts into which attention splits what a row attends to, at most."""
CHUNK = 128
"""Positions in such a part, at least, and in a step of attention; a divisor of PAGE. How long a row's parts are depends
on its position alone, so that its result is the same bits whatever runs beside it."""
DRAFT_ROWS, PART_ROWS = 16, 64
"""Rows of one sequence whose parts several threads may share, at most, and rows of a run for which there is room for
what the parts came to; of other rows one thread takes all parts of a tile."""


WINDOW_BYTES = 512
"""What kernels may read of a row from a sparse delta's window on, beyond its end too: memory that must be there."""

SECOND_TERM = 254
"""An activation is scale * first, and where there is a second term scale * (first + second / SECOND_TERM)."""


class Flag(IntEnum):
    ACCUMULATE = 1  # y += instead of y =
    LOGITS = 2  # y is the run's logits buffer, not the arena
    LAST_ROWS = 4  # only the rows of the input whose logits are wanted
    OUT_ROWS = 8  # runs over N_OUT rows instead of all
    SITE = 16  # variants may change the weight: SITE says which it is


class Mode(IntEnum):
    """What an attention op reads of the cache."""

    ALL = 0  # every position
    PAGES = 1  # the blocks that were chosen; of rows that are not decoded, as ALL
    RUNS = 2  # runs of positions, and every position from LayerState.EXACT_TO on


class LayerState(IntEnum):
    """What a session keeps for the attention policies of a layer; int64, most of them addresses. H: key/value heads."""

    EXACT_FROM = 0  # positions below it are in runs; a multiple of CHUNK
    EXACT_TO = 1  # what it becomes before this run's attention
    COUNTS = 2  # int64 [H]: runs of every head
    BLOCKS = 3  # int64 [H, MOST_BLOCKS]: addresses of the blocks that hold them, as in the cache, then float32 [BLOCK]:
    MOST_BLOCKS = 4  # what is added to the scores, the logarithm of a run's length
    STARTS = 5  # int32 [H, BLOCK * MOST_BLOCKS]: the first position of every run
    OPEN = 6  # float32 [H, padded]: the sum of the last run's values
    THETA = 7  # float32 [H]
    SINKS = 8
    LIMITS = 9  # float32 [H, padded]: how far an element must move; 0: whole keys are compared
    ELEMENTS = 10  # int64 [H]: elements that were transmitted, of the form with LIMITS
    LOGARITHMS = 11  # float32 [context + 1]
    UNDO = 12  # where the heads' runs are kept as they were; 0: nowhere. UNDO_BYTES a head
    UNDO_BYTES = 13
    WEIGHTS = 14  # float32 [n_heads, WEIGHTS_STRIDE]: exp(score - the largest so far), and
    WEIGHTS_STRIDE = 15
    LARGEST = 16  # float32 [n_heads, WEIGHTS_STRIDE / CHUNK]: that largest, of every step
    NORMS = 17  # float32 [n_heads, 2]: the largest of all, and one over the sum of exp(score - it)
    TOKENS = 18  # float32 [H, WEIGHTS_STRIDE]: of runs, each position's own share
    SCORES = 19  # float32 [WEIGHTS_STRIDE / BLOCK], of pages
    CHOSEN = 20  # int64 number of pages, then int64 [that many], ascending
    BUDGET = 21
    RECENT = 22
    HELD = 23  # 1: of a layer that selects, what it chose before stands: it reads that, and chooses nothing
    AHEAD = 24  # how many of a page's last positions count for the page behind it too, at most BLOCK
    SPILLED = 25  # float32 [WEIGHTS_STRIDE / BLOCK + 1]: what they are worth there
    MODE = 26  # what the layer reads, see Mode
    EXPORT = 27  # 1: it leaves its probabilities here, and pages are chosen by them
    COUNT = 28


class Sequence(IntEnum):
    """Indexes into the record of a sequence in a run: of the rows that are its, which follow each other, and of what
    it keeps; int64. The sequences of a run lie one behind the other, in the order of their rows."""

    FIRST_ROW = 0
    N_ROWS = 1
    POSITION = 2  # of the first row
    PAGES = 3  # address of the sequence's table of page addresses
    ATTENTION = 4  # address of the LayerState of every layer; 0: all attention is exact
    VARIANT = 5  # address of the sequence's Site addresses, int64 [sites], each 0 where nothing changes; 0: no variant
    DECODES = 6  # 1: one row that policies of decoding apply to
    FIRST_OUT = 7  # of the rows whose logits are wanted, the sequence's first, and
    N_OUT = 8  # their number: they are its last
    COUNT = 16


class Site(IntEnum):
    """Indexes into what a variant does to one weight: int64. Of a norm, a sequence's VARIANT has the address of its
    weights themselves, float32."""

    BIAS = 0  # address, float32, padded to ROWS: what is added to the outputs; 0: nothing
    N_TERMS = 1
    TERMS = 2  # here the first Term begins; the others follow


class Term(IntEnum):
    """Indexes into a variant's sparse delta of one matrix; int64."""

    W = 0  # address of the codes
    D = 1  # of the bfloat16 scales
    M = 2  # of the starts of blocks, int32, where positions are gaps
    WINDOW = 3  # columns of a window; 0: positions are gaps
    BITS = 4  # of a value, 4 or 8
    SCALE = 5  # float64 bits: the variant's weight
    COUNT = 6


class Keep(IntEnum):
    """Which columns of a projection are multiplied where one row runs."""

    ALL = 0  # the projection has no policy
    NONZERO = 1  # those whose input is not zero
    LARGE = 2  # of the inputs that are large (see ``mask``)
    CHANGED = 3  # of the inputs that have moved since they were sent last, to running sums (see ``changes``)


class Lines(IntEnum):
    """How the columns of a projection lie, which are not what its layers multiply otherwise."""

    Q4 = 0  # symmetric or with minima
    Q8 = 1
    TERNARY = 2
    OWN = 3  # the layers' own weights lie column by column: they skip what is zero of the row that they are given


class Skip(IntEnum):
    """A projection's record in the table that a run's SPARSITY points to: which columns are read of the layers that
    share a quantised input and a format, and how. The table's record 0 is of layers that belong to none."""

    KEEP = 0  # a Keep; with Keep.ALL nothing else means anything
    LINES = 1  # a Lines
    W = 2  # addresses of the columns of the layers' stack, and of its scales and minima, group by group
    D = 3
    M = 4
    WORTH = 5  # address, float32: what inputs are worth, the norm of their columns; padded with zeros to whole groups
    THRESHOLD = 6  # float64 bits; of a root mean square, what an input's size or change must be
    SHARE = 7  # float64 bits; Keep.LARGE: of the inputs that are kept; 0: as many as are above THRESHOLD
    REFRESH = 8  # Keep.CHANGED: positions after which everything is computed afresh; 0: never
    MOST = 9  # columns that are multiplied one by one, at most; where more are wanted, all are
    PARTS = 10  # groups of columns that are summed up apart, whatever the number of threads; of ternary stacks unused
    STACK = 11  # rows of the stack, padded to whole lines
    LISTS = 12  # arena offset of the threads' lists of columns (of ternary stacks also their sums), and
    LISTS_PRIVATE = 13  # bytes from thread to thread
    ROW = 14  # arena offset of the threads' rows of the inputs that are kept, or of their changes, and
    ROW_PRIVATE = 15
    SUMS = 16  # arena offset of float32 [PARTS, STACK]
    RUNNING = 17  # byte offset in the run's RUNNING, where this projection's state begins
    COUNT = 24  # whole cache lines


class Run(IntEnum):
    """Indexes into a run record."""

    ARENA = 0
    N_ROWS = 1
    POSITION = 2  # of the first row
    SEQUENCES = 3  # address of the Sequence records
    TOKENS = 4  # address of int64 token ids
    LOGITS = 5  # address
    N_OUT = 6  # rows whose logits are wanted
    COS = 7  # address, float32 [positions, head_dim / 2]
    SIN = 8
    BARRIER = 9  # address of the team's barrier
    N_SEQUENCES = 10
    PROFILE = 11  # address of int64 [2, ops]: thread 0 adds the ticks that each took, the columns read; 0: nobody asks
    COLUMNS_READ = 12  # where in it the op that runs counts its columns; 0 as PROFILE
    POLICIES = 13  # 1: some sequence has a LayerState
    SPARSITY = 14  # address of a Skip record for every projection; 0: all columns are read. For one row alone
    VARIANTS = 15  # 1: some sequence has a variant
    RUNNING = 16  # address of the sequence's references and running sums, where one of the Skips is Keep.CHANGED
    COUNT = 24  # whole cache lines


class Control(IntEnum):
    """Byte offsets into a team's control block; what threads write lies on cache lines of its own."""

    STOP = 0
    TAPE = 64
    N_OPS = 72
    RUN = 80
    N_THREADS = 88  # that take part in this job: the caller and the first workers
    UNFINISHED = 96  # 1 from a job's publication until the caller has done its own part
    PARKED = 104  # the workers that the caller must wake for this job
    BARRIER = 128  # arrivals; on the next line generation and sleepers
    STALLED = 208  # 1 from when a thread has lost its patience at the barrier, until the next job
    DISTRUST = 216  # by how many waits that outlasted patience were more than those that did not
    WORKERS = 256  # per worker: whether it is awake, parked or called
    WORKER_STRIDE = 64


TILE_HEADER = 64
"""Bytes before a tile's groups: int64 number of groups that have a second term; the rest is the quantiser's own."""


ROW_SCALES = 16
"""Where the scales lie in the header of a tile of rows with one scale each."""
COLUMN_ROWS = 256
"""Weight rows whose bits lie in one line of a column, of a matrix that lies column by column."""
COLUMN_AHEAD = 48
"""Columns by which prefetching runs ahead at most: behind a list's last one it still looks up so many."""
SEGMENT_BYTES = 64
"""Of a list of columns: what is known of some of a group's."""
MOST_QUADS = 4
"""Fours of columns in such a segment, which go through all rows side by side: the processor follows 16 streams of lines
and fetches ahead of them, of 20 none (measured: half the speed, and of 8 columns nine tenths)."""
GROUP_SEGMENTS = 2 * -(-GROUP // (4 * MOST_QUADS))
"""Of a group, at most: all its columns, by two terms."""
UNIT_ROWS, UNIT_COLUMNS, UNIT_BYTES = 32, 48, 320
"""Of ternary weights in codes of three columns: the unit that lies together."""
MOST_UNITS_A_PART = 18
"""Units whose columns are taken together: their tables of 1 KiB each stay in the first cache."""
TILE_SUMS = 64 * 4 * TILE_ROWS
"""Bytes of the sums of a tile of rows there: four vectors each."""
SUPER_GROUPS = 8
"""Groups that share a float16 scale in q6k, each with two int8 factors of its own."""


def first_stride(rows: int) -> int:
    """Bytes of a group of a quantised tile: per row 32 int8, then the rows' float32 scales, int32 offsets (-8 * sum of
    the integers), int32 offsets of the first 16 columns alone, and float32 sums (of the values that both terms stand
    for)."""
    return rows * (GROUP + 16)


def second_start(n_groups: int, rows: int) -> int:
    """Where the second terms begin: of the groups that have one, in order."""
    return TILE_HEADER + n_groups * first_stride(rows)


def second_stride(rows: int) -> int:
    """Bytes of a group's second terms: int64 group, per row 32 int8, the rows' float32 scales, both int32 offsets."""
    return 8 + rows * (GROUP + 12)


def activation_bytes(k: int, rows: int) -> int:
    """Bytes of a tile of ``rows`` quantised rows of ``k`` features, 1 or TILE_ROWS; whole lines."""
    groups = -(-k // GROUP)
    return -(-(second_start(groups, rows) + groups * second_stride(rows)) // 64) * 64


def row_activation_bytes(k: int, rows: int) -> int:
    """Bytes of a tile of rows with one scale each: the header holds the rows' int32 offsets (minus the sum of the
    integers) and, at ROW_SCALES, their float32 scales; then per group of 32 columns each row's 32 int8; whole lines."""
    return -(-(TILE_HEADER + -(-k // GROUP) * GROUP * rows) // 64) * 64


def columns_scratch_bytes(n: int, k: int, rows: int) -> int:
    """A thread's scratch for a layer with n x k weights column by column, and up to ``rows`` rows: for one row, sums,
    addresses of its columns and their inputs; for several, the sums of their tiles."""
    padded = -(-k // GROUP) * GROUP
    one = 4 * -(-n // COLUMN_ROWS) * COLUMN_ROWS + 8 * (padded + COLUMN_AHEAD) + padded
    return max(one, TILE_SUMS * -(-rows // TILE_ROWS))


def ternary_scratch_bytes(n: int, k: int) -> int:
    """A thread's scratch for a stack of n ternary rows whose columns are skipped: a header line, and one row's of
    ``columns_scratch_bytes``."""
    return 64 + columns_scratch_bytes(n, k, 1)


def list_scratch_bytes(k: int) -> int:
    """A thread's scratch for lists of the active ones of k columns: a header line, segments, addresses, two terms,
    of all groups the masks and what segments beyond a group's first take for terms."""
    groups = -(-k // GROUP)
    padded = groups * GROUP
    return 64 + GROUP_SEGMENTS * groups * SEGMENT_BYTES + 8 * (padded + COLUMN_AHEAD) + 2 * padded + 24 * groups


STATE_HEADER = 64
"""Bytes before a projection's references and running sums: int64, whether it holds; position of the last refresh;
float32 step; at 32, twice the position that ends a rest, and the rest's length (see ``changes``)."""


def state_sums(k: int) -> int:
    """Where the sums begin in a projection's state: behind the int32 references of k inputs."""
    return STATE_HEADER + 4 * (-(-k // GROUP) * GROUP)


def units_a_part(k: int) -> int:
    """Units of a part of k columns; all parts have as many, so that the last may be padded."""
    units = (k + UNIT_COLUMNS - 1) // UNIT_COLUMNS
    n_parts = (units + MOST_UNITS_A_PART - 1) // MOST_UNITS_A_PART
    return (units + n_parts - 1) // n_parts


def triples_scratch_bytes(n: int, k: int) -> int:
    """A thread's scratch for a layer with n x k weights in codes of three: int32 sums of all rows, or a block of 32
    rows in 2 bits, and what expanding writes beyond it."""
    return max(4 * -(-n // UNIT_ROWS) * UNIT_ROWS, -(-k // GROUP) * 256 + 192)


def padded_head(cache: str, head_dim: int) -> int:
    """Features of a head, with padding."""
    return -(-head_dim // GROUP) * GROUP if cache == "q8" else -(-head_dim // 16) * 16


def block_bytes(cache: str, head_dim: int) -> int:
    """Bytes of a block of one layer's key/value head, for "f16", "f32" or "q8"; see ``attention_cache``."""
    padded = padded_head(cache, head_dim)
    if cache == "q8":
        return 33 * padded + 4 * BLOCK
    return 2 * BLOCK * padded * (2 if cache == "f16" else 4)


def kv_head_bytes(cache: str, head_dim: int) -> int:
    """Bytes of one layer's key/value head in a page."""
    return PAGE // BLOCK * block_bytes(cache, head_dim)


def undo_bytes(cache: str, head_dim: int) -> int:
    """Bytes in which a head's runs are kept as they were: their number, the open run's sum, and the last block."""
    return -(-(8 + 4 * padded_head(cache, head_dim) + block_bytes(cache, head_dim) + 4 * BLOCK) // 64) * 64


def attention_scratch_bytes(head_dim: int) -> int:
    """A thread's scratch for attention: ends, blocks, softmax states, outputs, weights, sums, and the queries as the
    format wants them, and what the parts of a tile came to; or a key, a value and the two as the format wants them."""
    rows, padded = PREFILL_TILE, -(-head_dim // GROUP) * GROUP
    prepared = -(-max(4 * rows * padded, activation_bytes(padded, rows)) // 64) * 64
    work = 64 + 16 * CHUNK // BLOCK + 256 + 4 * rows * padded + 4 * rows * CHUNK + 64 * 2 * rows + prepared
    return work + rows * MAX_CHUNKS * partial_bytes(head_dim)


def partial_bytes(head_dim: int) -> int:
    """Bytes of what one part of a query's keys and values came to: maximum, sum, output; padded for every format."""
    return 4 * (-(-head_dim // GROUP) * GROUP + 16)


def partials_bytes(n_heads: int, head_dim: int, max_rows: int) -> int:
    """Bytes of the parts of all queries of the rows of a run that may have some."""
    return min(max_rows, PART_ROWS) * n_heads * MAX_CHUNKS * partial_bytes(head_dim)

"""Where the fields of op records lie. An op's layout is made of parts: ``Head``, and those that the registry names.

Parts that one op has lie side by side; parts that no op has together may share places. A part's fields are indexes into
the record; its COUNT is the first place behind it. Offsets and strides are in bytes; offsets are into the run's arena.
"""

from enum import IntEnum, auto

RECORD_FIELDS = 32
"""int64 of a record, whatever its op: four cache lines."""


class Head(IntEnum):
    """What every op has."""

    CODE = 0  # a registry.Op
    BARRIER = auto()  # 0 none, 1 after every run, 2 only when several rows run (one row is computed by every thread
    # itself), 3 only where a session's policy has chosen columns
    FLAGS = auto()  # bit set of record.Flag
    X = auto()  # offset of the input
    X_STRIDE = auto()  # from row to row; of quantised activations from tile to tile
    X_PRIVATE = auto()  # from thread to thread when one row runs; 0: shared
    Y = auto()
    Y_STRIDE = auto()
    Y_PRIVATE = auto()
    COUNT = auto()


class Varied(IntEnum):
    """Of an op with a weight that variants may change."""

    SITE = int(Head.COUNT)  # where Flag.SITE is set, the index of the weight in a sequence's VARIANT
    COUNT = auto()


class Input(IntEnum):
    """Of an op over rows."""

    K = int(Varied.COUNT)  # input features; of an embedding those of a row
    COUNT = auto()


class Matrix(IntEnum):
    """Weights."""

    N = int(Input.COUNT)  # output features; of an embedding tokens
    W = auto()  # address of the weights
    D = auto()  # address of the scales, float16; of ternary weights one float32
    M = auto()  # address of the minima, float16, or of q6k's int8 factors; 0: neither
    COUNT = auto()


class Linear(IntEnum):
    """Of a linear layer, behind its matrix."""

    BIAS = int(Matrix.COUNT)  # address, float32, padded to ROWS; 0: none
    INPUT = auto()  # offset of the input in float32, which variants multiply,
    INPUT_STRIDE = auto()  # bytes from row to row
    INPUT_PRIVATE = auto()  # and, when one row runs, from thread to thread
    COUNT = auto()


class Projected(IntEnum):
    """Of linear layers whose columns a session may leave unread, and of the op that chooses them."""

    PROJECTION = int(Linear.COUNT)  # which Skip of the run's SPARSITY is theirs; 0: none
    COUNT = auto()


class Stacked(IntEnum):
    """Of these layers alone."""

    START = int(Projected.COUNT)  # the layer's first row in the stack of its projection
    COUNT = auto()


class Scratch(IntEnum):
    """Of linear layers that want room of their own."""

    SCRATCH = int(Stacked.COUNT)  # offset
    SCRATCH_PRIVATE = auto()  # from thread to thread
    COUNT = auto()


class Norm(IntEnum):
    W = int(Input.COUNT)  # address, float32
    EPSILON = auto()  # float64 bits
    COUNT = auto()


class Quantize(IntEnum):
    THRESHOLD = int(Input.COUNT)  # float64 bits; groups whose largest is above this times the row's rms get two terms
    COUNT = auto()


class Gate(IntEnum):
    UP = int(Head.COUNT)  # offset of the second input
    N = auto()  # features
    COUNT = auto()


class Attention(IntEnum):
    """Of attention and of what its policies do before and behind it."""

    Q = int(Head.COUNT)  # offsets of q, k, v
    KEY = auto()
    VALUE = auto()
    Q_STRIDE = auto()
    KV_STRIDE = auto()
    N_HEADS = auto()
    N_KV_HEADS = auto()
    HEAD_DIM = auto()
    SCALE = auto()  # float64 bits
    LAYER = auto()  # byte offset of this layer within a page
    KV_HEAD_BYTES = auto()  # of one layer's key/value head in a page
    STATE = auto()  # byte offset of this layer's LayerState in the sequence's ATTENTION
    PARTIALS = auto()  # offset of the decode partials
    SCRATCH = auto()  # offset of the threads' scratch
    SCRATCH_PRIVATE = auto()  # from thread to thread
    Q_NORM = auto()  # addresses, float32 [head_dim], of the RMS norms of every head's queries and
    K_NORM = auto()  # keys, before RoPE; 0: none
    Q_SITE = auto()  # the indexes of these norms in a sequence's VARIANT
    K_SITE = auto()
    EPSILON = auto()  # float64 bits
    COUNT = auto()


class Read(IntEnum):
    """Of measuring the memory's bandwidth."""

    W = int(Head.COUNT)  # address
    LINES = auto()  # of 64 bytes
    COUNT = auto()

"""The sequences of a run: which rows are whose, where in its sequence a row stands, what a variant does to it."""

from ..kernel import inner
from ..layouts import Head, Varied
from ..record import Flag, Run, Sequence
from ..simd.ops import field, load_i64

SEQUENCE_BYTES = 8 * int(Sequence.COUNT)


@inner
def sequence_at(run, index):
    """The address of a run's Sequence record."""
    return field(run, Run.SEQUENCES) + SEQUENCE_BYTES * index


@inner
def position_of(sequence, row):
    """The position of a row of the run, which is the sequence's."""
    return field(sequence, Sequence.POSITION) + row - field(sequence, Sequence.FIRST_ROW)


@inner
def rows_of(op, sequence):
    """The first of a sequence's rows, and behind its last: of all that run, or for ops over the rows whose logits are
    wanted, of those."""
    if field(op, Head.FLAGS) & Flag.OUT_ROWS:
        first = field(sequence, Sequence.FIRST_OUT)
        return first, first + field(sequence, Sequence.N_OUT)
    first = field(sequence, Sequence.FIRST_ROW)
    return first, first + field(sequence, Sequence.N_ROWS)


@inner
def site_of(op, sequence):
    """What the sequence's variant does to the op's weight: an address (see ``record.Site``), 0 for nothing."""
    variant = field(sequence, Sequence.VARIANT)
    if variant == 0 or field(op, Head.FLAGS) & Flag.SITE == 0:
        return 0
    return load_i64(variant + 8 * field(op, Varied.SITE))


@inner
def vector_of(sequence, vector, site):
    """The address of a norm's weights: as the sequence's variant has them, or ``vector``, which 0 is for none."""
    variant = field(sequence, Sequence.VARIANT)
    if vector != 0 and variant != 0:
        changed = load_i64(variant + 8 * site)
        if changed != 0:
            vector = changed
    return vector

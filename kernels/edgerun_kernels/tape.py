"""The compiled loop: runs a tape's op records in order, all threads side by side, with barriers where they say so."""

from numba.core import types

from .attention import attention_f16, attention_f32, attention_q8, gather_attention
from .bandwidth import read_memory
from .barrier import wait_for_all
from .columns import gather_columns, linear_ternary_columns
from .delta import select_pages
from .deltallm import compact_f16, compact_f32, compact_q8
from .embed import embed_f32, embed_q4, embed_q6k, embed_q8
from .kernel import INT, exported, inner
from .linear import linear_q6k
from .linear_float import linear_f32, linear_q4_float, linear_q6k_float, linear_q8_float
from .mlp import squared_relu, swiglu
from .norm import quantize, quantize_rows, rms_norm
from .projection import linear_q4, linear_q8, linear_ternary, linear_ternary_triples, skip_columns
from .record import DRAFT_ROWS, Field, Flag, Op, Run
from .simd.ops import field, load_i64, prefetch, store_i64, ticks
from .skip import chosen_policy
from .sparse_delta import variant_embed, variant_linear

RECORD_BYTES = 8 * int(Field.COUNT)
# Plain integers: inside a kernel Numba would look an enumeration up at every use.
EMBED_Q4, EMBED_Q8, EMBED_F32 = int(Op.EMBED_Q4), int(Op.EMBED_Q8), int(Op.EMBED_F32)
RMS_NORM, QUANTIZE, SWIGLU = int(Op.RMS_NORM), int(Op.QUANTIZE), int(Op.SWIGLU)
LINEAR_Q4, LINEAR_Q8, LINEAR_F32 = int(Op.LINEAR_Q4), int(Op.LINEAR_Q8), int(Op.LINEAR_F32)
LINEAR_Q4_FLOAT, LINEAR_Q8_FLOAT = int(Op.LINEAR_Q4_FLOAT), int(Op.LINEAR_Q8_FLOAT)
ATTENTION_F16, ATTENTION_F32, ATTENTION_Q8 = int(Op.ATTENTION_F16), int(Op.ATTENTION_F32), int(Op.ATTENTION_Q8)
EMBED_Q6K, LINEAR_Q6K, LINEAR_Q6K_FLOAT = int(Op.EMBED_Q6K), int(Op.LINEAR_Q6K), int(Op.LINEAR_Q6K_FLOAT)
LINEAR_TERNARY, QUANTIZE_ROWS, SQUARED_RELU = int(Op.LINEAR_TERNARY), int(Op.QUANTIZE_ROWS), int(Op.SQUARED_RELU)
LINEAR_TERNARY_COLUMNS, GATHER_COLUMNS = int(Op.LINEAR_TERNARY_COLUMNS), int(Op.GATHER_COLUMNS)
LINEAR_TERNARY_TRIPLES = int(Op.LINEAR_TERNARY_TRIPLES)
GATHER_ATTENTION, READ_MEMORY = int(Op.GATHER_ATTENTION), int(Op.READ_MEMORY)
COMPACT_F16, COMPACT_F32, COMPACT_Q8 = int(Op.COMPACT_F16), int(Op.COMPACT_F32), int(Op.COMPACT_Q8)
SELECT_PAGES = int(Op.SELECT_PAGES)
SKIP_COLUMNS = int(Op.SKIP_COLUMNS)


@inner
def run_op(code, op, run, tid, n_threads):
    if code == LINEAR_Q4:
        linear_q4(op, run, tid, n_threads)
    elif code == LINEAR_TERNARY:
        linear_ternary(op, run, tid, n_threads)
    elif code == LINEAR_TERNARY_TRIPLES:
        linear_ternary_triples(op, run, tid, n_threads)
    elif code == LINEAR_TERNARY_COLUMNS:
        linear_ternary_columns(op, run, tid, n_threads)
    elif code == GATHER_COLUMNS:
        gather_columns(op, run, tid, n_threads)
    elif code == QUANTIZE:
        quantize(op, run, tid, n_threads)
    elif code == RMS_NORM:
        rms_norm(op, run, tid, n_threads)
    elif code == QUANTIZE_ROWS:
        quantize_rows(op, run, tid, n_threads)
    elif code == SKIP_COLUMNS:
        skip_columns(op, run, tid, n_threads)
    elif code == SWIGLU:
        swiglu(op, run, tid, n_threads)
    elif code == SQUARED_RELU:
        squared_relu(op, run, tid, n_threads)
    elif code == ATTENTION_F16:
        attention_f16(op, run, tid, n_threads)
    elif code == ATTENTION_F32:
        attention_f32(op, run, tid, n_threads)
    elif code == ATTENTION_Q8:
        attention_q8(op, run, tid, n_threads)
    elif code == GATHER_ATTENTION:
        gather_attention(op, run, tid, n_threads)
    elif code == LINEAR_Q8:
        linear_q8(op, run, tid, n_threads)
    elif code == LINEAR_Q6K:
        linear_q6k(op, run, tid, n_threads)
    elif code == LINEAR_F32:
        linear_f32(op, run, tid, n_threads)
    elif code == LINEAR_Q4_FLOAT:
        linear_q4_float(op, run, tid, n_threads)
    elif code == LINEAR_Q8_FLOAT:
        linear_q8_float(op, run, tid, n_threads)
    elif code == EMBED_Q4:
        embed_q4(op, run, tid, n_threads)
    elif code == EMBED_Q8:
        embed_q8(op, run, tid, n_threads)
    elif code == LINEAR_Q6K_FLOAT:
        linear_q6k_float(op, run, tid, n_threads)
    elif code == EMBED_Q6K:
        embed_q6k(op, run, tid, n_threads)
    elif code == EMBED_F32:
        embed_f32(op, run, tid, n_threads)
    elif code == SELECT_PAGES:
        select_pages(op, run, tid, n_threads)
    elif code == COMPACT_F16:
        compact_f16(op, run, tid, n_threads)
    elif code == COMPACT_Q8:
        compact_q8(op, run, tid, n_threads)
    elif code == COMPACT_F32:
        compact_f32(op, run, tid, n_threads)
    elif code == READ_MEMORY:
        read_memory(op, run, tid, n_threads)


@inner
def add_variants(code, op, run, tid, n_threads):
    """What variants do behind an op that has a weight of theirs; norms have taken it already."""
    if code in (EMBED_Q4, EMBED_Q8, EMBED_Q6K, EMBED_F32):
        variant_embed(op, run, tid, n_threads)
    elif code != RMS_NORM:
        if code == LINEAR_TERNARY_TRIPLES:  # whose threads have shared out other blocks
            wait_for_all(field(run, Run.BARRIER), n_threads, field(run, Run.N_ROWS) > DRAFT_ROWS)
        variant_linear(op, run, tid, n_threads)


@exported(types.void, INT, INT, INT, INT, INT)
def run_tape(tape, n_ops, run, tid, n_threads):
    """Thread ``tid``'s part of ``n_ops`` records; returns when every thread has finished every op."""
    rows = field(run, Run.N_ROWS)
    several, patient = rows > 1, rows > DRAFT_ROWS
    variants = field(run, Run.VARIANTS) != 0
    barrier = field(run, Run.BARRIER)
    profile = field(run, Run.PROFILE) if tid == 0 else 0
    for i in range(n_ops):
        start = 0
        if profile != 0:
            store_i64(run + 8 * Run.COLUMNS_READ, profile + 8 * (n_ops + i))
            start = ticks()
        op = tape + RECORD_BYTES * i
        # Weights have driven the next record out of all caches, and where that does nothing the one behind it is next.
        for line in range(RECORD_BYTES, 3 * RECORD_BYTES, 64):
            prefetch(op + line)
        code = field(op, Field.CODE)
        run_op(code, op, run, tid, n_threads)
        if variants and field(op, Field.FLAGS) & Flag.SITE:
            add_variants(code, op, run, tid, n_threads)
        when = field(op, Field.BARRIER)
        if when == 1 or (when == 2 and several) or (when == 3 and chosen_policy(op, run, tid) != 0):
            wait_for_all(barrier, n_threads, patient)
        if profile != 0:
            store_i64(profile + 8 * i, load_i64(profile + 8 * i) + ticks() - start)
    wait_for_all(barrier, n_threads, patient)

"""Which kernel runs an op: codes of records by weight format, activation or cache type."""

from __future__ import annotations

from edgerun_kernels.record import Op, activation_bytes, row_activation_bytes

EMBED = {"q4": Op.EMBED_Q4, "q4m": Op.EMBED_Q4, "q8": Op.EMBED_Q8, "q6k": Op.EMBED_Q6K, "f32": Op.EMBED_F32}
LINEAR = {"q4": Op.LINEAR_Q4, "q4m": Op.LINEAR_Q4, "q8": Op.LINEAR_Q8, "q6k": Op.LINEAR_Q6K, "f32": Op.LINEAR_F32}
LINEAR_FLOAT = {
    "q4": Op.LINEAR_Q4_FLOAT,
    "q4m": Op.LINEAR_Q4_FLOAT,
    "q8": Op.LINEAR_Q8_FLOAT,
    "q6k": Op.LINEAR_Q6K_FLOAT,
    "f32": Op.LINEAR_F32,
}
LINEAR_TERNARY = {
    "ternary": Op.LINEAR_TERNARY,
    "ternary_columns": Op.LINEAR_TERNARY_COLUMNS,
    "ternary_triples": Op.LINEAR_TERNARY_TRIPLES,
}
GATE = {"SwiGLU": Op.SWIGLU, "SquaredReLU": Op.SQUARED_RELU}
TILE_BYTES = {Op.QUANTIZE: activation_bytes, Op.QUANTIZE_ROWS: row_activation_bytes}
ATTENTION = {"f16": Op.ATTENTION_F16, "q8": Op.ATTENTION_Q8, "f32": Op.ATTENTION_F32}
COMPACT = {"f16": Op.COMPACT_F16, "q8": Op.COMPACT_Q8, "f32": Op.COMPACT_F32}

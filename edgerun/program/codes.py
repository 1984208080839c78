"""Which op runs what: by weight format, activation or cache type, as the registry of ops has them."""

from __future__ import annotations

from edgerun_kernels.record import activation_bytes, row_activation_bytes
from edgerun_kernels.registry import Op, by_format

EMBED = by_format("embedding")
LINEAR = by_format("linear")
LINEAR_FLOAT = by_format("linear over float32")
LINEAR_TERNARY = by_format("linear over int8 rows")
GATE = by_format("gate")
TILE_BYTES = {Op.QUANTIZE: activation_bytes, Op.QUANTIZE_ROWS: row_activation_bytes}
ATTENTION = by_format("attention")
COMPACT = by_format("runs")

"""What attention computes with, recorded while the runtime runs: queries of sampled positions, all keys and values."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgerun.program.codes import ATTENTION
from edgerun.progress import Progress, silent
from edgerun_kernels.layouts import Attention, Head
from edgerun_kernels.record import Run
from edgerun_kernels.reference import rms_norm, rope, unpack_page

if TYPE_CHECKING:
    from edgerun.model import Model

F32 = NDArray[np.float32]


class Capture:
    """One pass over ``tokens`` with exact attention.

    positions: int64 [n], ascending: whose queries are kept.
    """

    def __init__(
        self, model: Model, tokens: Sequence[int], positions: NDArray[np.int64], progress: Progress = silent
    ) -> None:
        self.positions = positions
        self.n_tokens = len(tokens)
        self._cache = model.cache
        self._session = model.session("none", "full")
        self._ops = [op for op in self._session.model.tape.ops if op[Head.CODE] in ATTENTION.values()]
        at = [i for i, op in enumerate(self._session.model.tape.ops) if op[Head.CODE] in ATTENTION.values()]
        shape = len(positions), int(self._ops[0][Attention.N_HEADS]), int(self._ops[0][Attention.HEAD_DIM])
        self._queries = np.empty((len(at), *shape), np.float32)
        model.stops = {index: partial(self._keep, layer) for layer, index in enumerate(at)}
        try:
            step = model.tape.max_rows
            for start in range(0, len(tokens), step):
                progress(start, len(tokens), "recording attention")
                self._session.prefill(tokens[start : start + step])
        finally:
            model.stops = {}
        progress(len(tokens), len(tokens), "recording attention")

    @property
    def n_layers(self) -> int:
        return len(self._ops)

    def queries(self, layer: int) -> F32:
        """float32 [n, n_heads, head_dim] at ``positions``, after RoPE, times the attention's scale."""
        found: F32 = self._queries[layer]
        return found

    def keys_values(self, layer: int) -> tuple[F32, F32]:
        """float32 [n_kv_heads, n_tokens, head_dim] each, as the cache holds them: keys after RoPE."""
        op = self._ops[layer]
        first, size, dim = int(op[Attention.LAYER]), int(op[Attention.KV_HEAD_BYTES]), int(op[Attention.HEAD_DIM])
        heads = int(op[Attention.N_KV_HEADS])
        pages = [page.memory for page in self._session.sequence.pages if page is not None]  # exact attention needs all
        layers = (page[first : first + heads * size].reshape(heads, size) for page in pages)
        parts = [unpack_page(self._cache, layer, dim) for layer in layers]
        keys, values = (np.concatenate(part, axis=1)[:, : self.n_tokens] for part in zip(*parts, strict=True))
        return keys, values

    def _keep(self, layer: int, run: NDArray[np.int64]) -> None:
        """Before a layer's attention: its queries lie in the arena, not yet normalised and rotated."""
        op, first, count = self._ops[layer], int(run[Run.POSITION]), int(run[Run.N_ROWS])
        low, high = np.searchsorted(self.positions, (first, first + count))
        rows = self.positions[low:high] - first
        heads, dim = self._queries.shape[2:]
        stride = int(op[Attention.Q_STRIDE]) // 4
        q = _floats(int(run[Run.ARENA] + op[Attention.Q]), count * stride).reshape(count, stride)[rows, : heads * dim]
        if op[Attention.Q_NORM]:
            epsilon = float(np.int64(op[Attention.EPSILON]).view(np.float64))
            q = rms_norm(q.reshape(-1, dim), _floats(int(op[Attention.Q_NORM]), dim), epsilon)
        cos, sin = (
            _floats(int(run[field]), (first + count) * dim // 2).reshape(-1, dim // 2)[first + rows]
            for field in (Run.COS, Run.SIN)
        )
        scale = float(np.int64(op[Attention.SCALE]).view(np.float64))
        self._queries[layer, low:high] = rope(q.reshape(-1, heads, dim), cos, sin, scale)


def _floats(address: int, count: int) -> F32:
    """float32 [count] at an address, where they lie."""
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))

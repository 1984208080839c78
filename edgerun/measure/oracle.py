"""The same package in onnxruntime: a second, independent runtime to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import EdgerunError, OptionError, PackageError
from edgerun.measure.evaluate import CHUNK, Logits, starting_token

if TYPE_CHECKING:
    from edgerun.text.tokenizer import Tokenizer


class OnnxruntimeScorer:
    """An `edgerun.measure.evaluate.Scorer` that runs the package's graph in onnxruntime, all weights made float32."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, *, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise OptionError("onnxruntime is not installed; install it with: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise PackageError(
                f"onnxruntime refuses {folder / 'model.onnx'}: {error}; export the model again"
            ) from None
        self._tokenizer = tokenizer

    @property
    def bos_id(self) -> int | None:
        return starting_token(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, parse_special=False)

    def score(self, tokens: Sequence[int], first: int) -> Iterator[Logits]:
        cache = self._empty_cache()
        bounds = [*range(0, first, CHUNK), *range(first, len(tokens), CHUNK), len(tokens)]
        for start, end in itertools.pairwise(bounds):
            logits, cache = self._run(tokens[start:end], start, cache)
            if start >= first:
                yield logits

    def _empty_cache(self) -> dict[str, Any]:
        return {
            value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            for value in self._session.get_inputs()
            if value.name.startswith("past_key_values.")
        }

    def _run(self, tokens: Sequence[int], start: int, cache: dict[str, Any]) -> tuple[Logits, dict[str, Any]]:
        feed = {
            "input_ids": np.asarray([tokens], np.int64),
            "position_ids": np.arange(start, start + len(tokens), dtype=np.int64)[None],
            **cache,
        }
        names = [output.name for output in self._session.get_outputs()]
        try:
            outputs = dict(zip(names, self._session.run(names, feed), strict=True))
        except Exception as error:
            raise EdgerunError(f"onnxruntime failed at token {start}: {error}") from None
        grown = {name: outputs[name.replace("past_key_values.", "present.")] for name in cache}
        return outputs["logits"][0], grown

    def __enter__(self) -> OnnxruntimeScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session

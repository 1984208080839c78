"""Reads tokenizer.model, a SentencePiece ModelProto, without the sentencepiece library.

Fields: github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Wire format:
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from edgerun.errors import CheckpointError

from .vocabulary import NORMAL, Vocabulary

_UNIGRAM, _BPE = 1, 2


def read_sentencepiece(path: Path) -> Vocabulary:
    """The vocabulary of a BPE tokenizer.model. CheckpointError if it is damaged or of another kind than BPE."""
    try:
        return _vocabulary(path.read_bytes(), path)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError):
        raise CheckpointError(f"{path}: not a SentencePiece model, or a damaged one; download it again") from None


def _vocabulary(data: bytes, path: Path) -> Vocabulary:
    tokens: list[str] = []
    types: list[int] = []
    scores: list[float] = []
    trainer: dict[int, bytes | int] = {}
    normaliser: dict[int, bytes | int] = {}
    for field, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if field == 1:
            piece = dict(_fields(value))
            text, score = piece[1], piece.get(2, b"\0\0\0\0")
            if not isinstance(text, bytes) or not isinstance(score, bytes):
                raise ValueError(field)
            tokens.append(text.decode("utf-8"))
            scores.append(struct.unpack("<f", score)[0])
            types.append(int(piece.get(3, NORMAL)))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normaliser = dict(_fields(value))
    kind = trainer.get(3, _UNIGRAM)
    if kind != _BPE:
        raise CheckpointError(
            f"{path}: a SentencePiece model of kind {int(kind)} (1 is Unigram), but only BPE (2) is supported; "
            "use a folder with a tokenizer.json"
        )
    charsmap = normaliser.get(2, b"")

    def token_id(field: int, default: int) -> int | None:
        value = _signed(trainer.get(field, default))
        return value if 0 <= value < len(tokens) else None

    return Vocabulary(
        tokens,
        types,
        scores,
        unk=token_id(40, 0),
        bos=token_id(41, 1),
        eos=token_id(42, 2),
        pad=token_id(43, -1),
        add_bos=True,
        space_prefix=bool(normaliser.get(3, True)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) in order; integers for varints, bytes for all else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(wire)
        if at + length > len(data):
            raise ValueError(length)
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _signed(value: bytes | int) -> int:
    number = int(value) if isinstance(value, int) else -1
    return number - (1 << 64) if number >> 63 else number

"""A vocabulary as GGUF and SentencePiece describe it, made into a `tokenizers.Tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .pretokenizers import PreTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Types of tokens: GGUF's tokenizer.ggml.token_type and SentencePiece's SentencePiece.Type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPACE = "▁"


@dataclass
class Vocabulary:
    """Tokens by id with what the file says of them. `types` and `scores` are as long as `tokens`."""

    tokens: list[str]
    types: Sequence[int]
    scores: Sequence[float] = ()  # SentencePiece: the higher, the earlier a merge
    merges: Sequence[str] = ()  # byte-level BPE: "left right", the first one first
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    pad: int | None = None
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool = True  # SentencePiece: a space is put before the text
    charsmap: bytes = b""  # SentencePiece: precompiled normalisation
    end_of_turn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Every id needs a text of its own: llama.cpp's name for empty ones, a like one for repeated ones."""
        seen: set[str] = set()
        for i, token in enumerate(self.tokens):
            if not token or token in seen:
                self.tokens[i] = f"[{'REPEATED' if token else 'EMPTY'}_{i}]"
            seen.add(self.tokens[i])

    def text(self, token: int | None) -> str | None:
        return None if token is None or not 0 <= token < len(self.tokens) else self.tokens[token]


def byte_level_tokenizer(vocabulary: Vocabulary, pre: PreTokenizer) -> Tokenizer:
    """GPT-2's kind: bytes as printable characters, explicit merges."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = [_split_merge(merge) for merge in vocabulary.merges]
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    # A merge that makes no token cannot be applied (the library would refuse the file).
    merges = [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]
    model = models.BPE(vocab=ids, merges=merges, ignore_merges=pre.ignore_merges, fuse_unk=False)
    tokenizer = Tokenizer(model)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits: list[Any] = [pre_tokenizers.Split(Regex(e), "isolated") for e in pre.expressions]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special_tokens(tokenizer, vocabulary)


def sentencepiece_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """SentencePiece BPE (Llama 2, Mistral): spaces as ▁, merges by the score of their result, bytes as fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    unk = vocabulary.text(vocabulary.unk)
    model = models.BPE(
        vocab={token: i for i, token in enumerate(vocabulary.tokens)},
        merges=merges_from_scores(vocabulary),
        unk_token=unk,
        fuse_unk=True,
        byte_fallback=BYTE in vocabulary.types,
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Precompiled(vocabulary.charsmap)] if vocabulary.charsmap else []
    decoding: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.space_prefix:
        steps.append(normalizers.Prepend(_SPACE))
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(decoding)
    return _with_special_tokens(tokenizer, vocabulary)


def merges_from_scores(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to make a token of two tokens, best score first (as in transformers' convert_slow_tokenizer)."""
    usable = {
        token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.types[i] in (NORMAL, USER_DEFINED, UNUSED)
    }
    found = []
    for token, i in usable.items():
        if vocabulary.types[i] != NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = usable.get(token[:cut]), usable.get(token[cut:])
            if left is not None and right is not None:
                found.append((-float(vocabulary.scores[i]), i, left, right))
    found.sort()
    return [(vocabulary.tokens[left], vocabulary.tokens[right]) for _, _, left, right in found]


def _with_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> Tokenizer:
    from tokenizers import AddedToken, processors

    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    # One call, because each rebuilds the matcher of all added tokens.
    tokenizer.add_tokens(added)
    begin = vocabulary.text(vocabulary.bos) if vocabulary.add_bos else None
    end = vocabulary.text(vocabulary.eos) if vocabulary.add_eos else None
    if begin or end:
        template = [*([begin] if begin else []), "$A", *([end] if end else [])]
        special = {token: tokenizer.token_to_id(token) for token in (begin, end) if token}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template,
            pair=[*template, *(part.replace("$A", "$B") for part in template)],
            special_tokens=list(special.items()),
        )
    return tokenizer


def _split_merge(merge: str) -> tuple[str, str]:
    """ "left right": the space that parts them is never the first character."""
    cut = merge.find(" ", 1)
    return merge[:cut], merge[cut + 1 :]

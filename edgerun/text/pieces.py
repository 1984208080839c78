"""The exact bytes that each token of a vocabulary stands for.

Two ways of writing bytes as text are in use. Byte-level BPE (GPT-2) gives each of the 256 bytes a printable character
of its own. SentencePiece writes a space as U+2581 and a byte that has no token as `<0x41>`. Which of the two a
tokenizer uses, its decoder says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from edgerun.errors import PackageError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character of each byte: printable Latin-1 characters stand for themselves, the others follow from
    U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


_BYTES = _byte_alphabet()


@dataclass
class PieceRule:
    """How a token's text becomes bytes. `strips_leading_space`: decoding drops one space at the very start, which the
    tokenizer had put there."""

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: list[tuple[str, str]] = field(default_factory=list)
    strips_leading_space: bool = False

    def token_bytes(self, token: str) -> bytes:
        """The bytes of an ordinary token."""
        if self.byte_level:
            try:
                return bytes([_BYTES[character] for character in token])
            except KeyError:  # a token that was added without being spelt in the alphabet
                return token.encode("utf-8", "replace")
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return self.added_bytes(token)

    def added_bytes(self, token: str) -> bytes:
        """The bytes of an added token: those are spelt literally, whatever the alphabet."""
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")


def piece_rule(decoder: dict[str, Any] | None, where: str) -> PieceRule:
    """The rule that a tokenizer.json's `decoder` section (None: no decoder) describes.

    Raises `PackageError` (which names `where`) for a decoder that doesn't work token by token."""
    rule = PieceRule()
    _apply(decoder, rule, where)
    return rule


def _apply(decoder: dict[str, Any] | None, rule: PieceRule, where: str) -> None:
    kind = decoder.get("type") if decoder else None
    if decoder is None or kind == "Fuse":
        return
    if kind == "Sequence":
        for part in decoder.get("decoders", []):
            _apply(part, rule, where)
    elif kind == "ByteLevel":
        rule.byte_level = True
    elif kind == "ByteFallback":
        rule.byte_fallback = True
    elif kind == "Metaspace":
        rule.replacements.append((decoder.get("replacement", "▁"), " "))
        rule.strips_leading_space = decoder.get("prepend_scheme", "always") != "never"
    elif kind == "Replace" and "String" in decoder.get("pattern", {}):
        rule.replacements.append((decoder["pattern"]["String"], decoder.get("content", "")))
    elif kind == "Strip" and decoder.get("content") == " " and not decoder.get("stop"):
        rule.strips_leading_space = bool(decoder.get("start"))
    else:
        raise PackageError(
            f"{where}: decoder {kind!r} isn't supported (byte-level BPE and SentencePiece are); use a model with one "
            "of those"
        )

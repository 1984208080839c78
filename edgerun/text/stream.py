"""Tokens in, text out: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from edgerun.errors import OptionError


class Pieces(Protocol):
    """What a stream needs of a tokenizer."""

    @property
    def strips_leading_space(self) -> bool: ...

    def piece_bytes(self, token_id: int) -> bytes: ...

    def is_special(self, token_id: int) -> bool: ...


class TextStream:
    """Turns token ids into text as they come.

    The pieces that `push` and `flush` return join to exactly what decoding all ids at once gives, cut before the
    first stop string that is completed (of several completed by one character, the longest). A character is held
    back until its last byte has come, text is held back while a stop string may be starting in it; bytes that are no
    UTF-8 become U+FFFD. Special tokens give no text. Work is linear in the text, whatever the stop strings.

    continuation: the text goes on from an earlier one, so the leading space that SentencePiece tokenizers put before
    a first word is kept.
    """

    def __init__(self, tokenizer: Pieces, stop: Sequence[str] = (), *, continuation: bool = False) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_leading_space and not continuation
        self._matchers = [_Matcher(text) for text in ([stop] if isinstance(stop, str) else stop)]
        self._held = ""
        self.stop_string: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; from then on `push` and `flush` return nothing."""
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """The text that is certain now that this token has come; often empty."""
        if self.stopped or self._tokenizer.is_special(token_id):
            return ""
        return self._advance(self._decoder.decode(self._tokenizer.piece_bytes(token_id)))

    def flush(self) -> str:
        """What was held back, now that no more tokens come."""
        if self.stopped:
            return ""
        text = self._advance(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        for matcher in self._matchers:
            matcher.state = 0
        return text

    def _advance(self, text: str) -> str:
        if not text:
            return ""
        if self._strip:
            self._strip = False
            text = text[1:] if text[0] == " " else text
        if not self._matchers:
            return text
        start = len(self._held)
        text = self._held + text
        for end in range(start, len(text)):
            # A list and not a generator: each matcher must see each character.
            complete = [m.stop for m in self._matchers if m.feed(text[end])]
            if complete:
                self.stop_string = max(complete, key=len)
                self._held = ""
                return text[: end + 1 - len(self.stop_string)]
        keep = len(text) - max(m.state for m in self._matchers)
        self._held = text[keep:]
        return text[:keep]


class _Matcher:
    """Knuth, Morris and Pratt's string search, one character at a time: `state` is the length of the longest prefix
    of `stop` that the text seen so far ends with."""

    def __init__(self, stop: str) -> None:
        if not stop:
            raise OptionError("a stop string is empty; every stop string must be a text of at least one character")
        self.stop = stop
        self.state = 0
        self._fallback = [0] * len(stop)
        length = 0
        for i in range(1, len(stop)):
            while length and stop[i] != stop[length]:
                length = self._fallback[length - 1]
            if stop[i] == stop[length]:
                length += 1
            self._fallback[i] = length

    def feed(self, character: str) -> bool:
        """Take one character; whether the stop string is complete with it."""
        state = self.state
        if state == len(self.stop):
            state = self._fallback[state - 1]
        while state and self.stop[state] != character:
            state = self._fallback[state - 1]
        self.state = state + 1 if self.stop[state] == character else 0
        return self.state == len(self.stop)

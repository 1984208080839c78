"""Streaming gives what decoding everything at once gives, however the bytes are split into tokens."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.errors import OptionError
from edgerun.text.stream import TextStream
from edgerun.text.tokenizer import Tokenizer
from tests.text.tokenizers_made import byte_level, sentencepiece


class Bytes:
    """A vocabulary whose tokens are given byte strings; None is a special token."""

    def __init__(self, pieces: list[bytes | None], strips_leading_space: bool = False) -> None:
        self.pieces = pieces
        self.strips_leading_space = strips_leading_space

    def piece_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id] or b"<special>"

    def is_special(self, token_id: int) -> bool:
        return self.pieces[token_id] is None


def stream(pieces: list[bytes | None], stop: list[str], strips: bool = False) -> tuple[list[str], TextStream]:
    text_stream = TextStream(Bytes(pieces, strips), stop)
    texts = [text_stream.push(i) for i in range(len(pieces))]
    return [*texts, text_stream.flush()], text_stream


def cut(text: str, stop: list[str]) -> str:
    """The specification: before the first stop string to be completed, the longest of several."""
    for end in range(len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - len(max(complete, key=len))]
    return text


def split(data: bytes, places: list[int]) -> list[bytes | None]:
    edges = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


some_bytes = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(lambda s: s.encode()),
    st.text(alphabet="ab é🎉", max_size=40).map(lambda s: s.encode()),
)
stops = st.lists(st.text(alphabet="ab é🎉\ufffd", min_size=1, max_size=5), max_size=3)


@settings(max_examples=300, deadline=None)
@given(some_bytes, st.lists(st.integers(0, 1000), max_size=20), stops, st.booleans())
def test_any_split_and_any_stop_strings(data: bytes, places: list[int], stop: list[str], strips: bool) -> None:
    texts, text_stream = stream(split(data, places), stop, strips)
    whole = data.decode("utf-8", "replace")
    if strips and whole.startswith(" "):
        whole = whole[1:]
    assert "".join(texts) == cut(whole, stop)
    assert text_stream.stopped == any(s in whole for s in stop)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.lists(st.integers(0, 1000), max_size=20))
def test_valid_text_never_shows_half_a_character(text: str, places: list[int]) -> None:
    text = text.replace("\ufffd", "")
    texts, _ = stream(split(text.encode(), places), [])
    assert "".join(texts) == text
    assert not any("\ufffd" in piece for piece in texts)


def test_a_character_appears_with_its_last_byte() -> None:
    texts, _ = stream([b"\xf0", b"\x9f", b"\x8e", b"\x89!"], [])
    assert texts == ["", "", "", "🎉!", ""]


def test_half_a_character_at_the_end_is_replaced() -> None:
    texts, _ = stream([b"ab", b"\xf0\x9f"], [])
    assert texts == ["ab", "", "\ufffd"]


def test_a_stop_string_across_tokens_is_held_back_and_cut() -> None:
    texts, text_stream = stream([b"one\n", b"Us", b"er", b": two"], ["\nUser:"])
    assert texts == ["one", "", "", "", ""]
    assert text_stream.stop_string == "\nUser:"


def test_what_was_held_back_in_vain_comes_with_the_token_that_shows_it() -> None:
    texts, text_stream = stream([b"one\n", b"Us", b"age"], ["\nUser:"])
    assert texts == ["one", "", "\nUsage", ""]
    assert not text_stream.stopped


def test_only_what_may_still_become_a_stop_string_is_held() -> None:
    texts, _ = stream([b"aaab", b"aab"], ["aabaac"])
    assert texts == ["a", "aab", "aab"]


def test_special_tokens_are_silent_and_do_not_break_a_character() -> None:
    texts, _ = stream([b"\xc3", None, b"\xa9"], [])
    assert texts == ["", "", "é", ""]


def test_nothing_comes_after_a_stop() -> None:
    text_stream = TextStream(Bytes([b"a.b", b"c"]), ["."])
    assert text_stream.push(0) == "a"
    assert text_stream.push(1) == "" and text_stream.flush() == ""


def test_one_string_is_one_stop_string_and_an_empty_one_is_refused() -> None:
    assert TextStream(Bytes([b"xab"]), "ab").push(0) == "x"
    with pytest.raises(OptionError, match="empty"):
        TextStream(Bytes([]), [""])


def test_time_is_linear_in_text_and_stop_string() -> None:
    """A stop string of 20 000 characters that is nearly completed at every character: quadratic work takes minutes."""
    stop = "a" * 20_000 + "b"
    pieces: list[bytes | None] = [b"a" * 100] * 1000
    start = time.perf_counter()
    texts, _ = stream(pieces, [stop])
    assert "".join(texts) == "a" * 100_000
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_real_tokenizers_stream_what_they_decode(make: object, tmp_path: Path) -> None:
    tokenizer = Tokenizer(make(tmp_path))  # type: ignore[operator]
    for text in ("hello the world", " leading", "日本語 🎉 naïve", "", "\n\n  x"):
        ids = tokenizer.encode(text)
        text_stream = TextStream(tokenizer)
        assert "".join([*map(text_stream.push, ids), text_stream.flush()]) == tokenizer.decode(ids) == text


def test_a_continuation_keeps_its_leading_space(tmp_path: Path) -> None:
    tokenizer = Tokenizer(sentencepiece(tmp_path))
    ids = tokenizer.encode("world", add_bos=False)
    assert TextStream(tokenizer, continuation=True).push(ids[0]).startswith(" ")
    assert not TextStream(tokenizer).push(ids[0]).startswith(" ")

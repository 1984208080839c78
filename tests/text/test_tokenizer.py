"""Tokenizers of both kinds: exact bytes, BOS and end rules, special tokens, damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from edgerun.errors import EdgerunError, PackageError
from edgerun.text.tokenizer import Tokenizer
from tests.text.tokenizers_made import byte_level, sentencepiece


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(byte_level(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(sentencepiece(tmp_path_factory.mktemp("sentencepiece")))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_byte_level_bytes_are_exact(gpt2: Tokenizer, text: str) -> None:
    ids = gpt2.encode(text, parse_special=False)
    assert b"".join(map(gpt2.piece_bytes, ids)) == text.encode()
    assert gpt2.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40).filter(lambda s: "▁" not in s))
def test_sentencepiece_bytes_are_exact_after_the_space_it_adds(llama: Tokenizer, text: str) -> None:
    ids = llama.encode(text, add_bos=False, parse_special=False)
    assert b"".join(map(llama.piece_bytes, ids)) == (b" " + text.encode() if text else b"")
    assert llama.decode(ids) == text


@pytest.mark.parametrize("text", ["hello world", "naïve café", "日本", "a  b", " x"])
def test_decoding_agrees_with_the_library(gpt2: Tokenizer, llama: Tokenizer, text: str) -> None:
    for tokenizer in (gpt2, llama):
        library = Library.from_file(str(tokenizer.folder / "tokenizer.json"))
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True)


def test_single_bytes(gpt2: Tokenizer, llama: Tokenizer) -> None:
    assert llama.piece_bytes(3) == b"\x00" and llama.piece_bytes(3 + 0xE9) == b"\xe9"
    assert {gpt2.piece_bytes(i) for i in range(gpt2.vocab_size)} >= {bytes([b]) for b in range(256)}


def test_added_tokens_are_literal(gpt2: Tokenizer) -> None:
    token_id = gpt2.token_id("<é think>")
    assert token_id is not None
    assert gpt2.piece_bytes(token_id) == "<é think>".encode()
    assert not gpt2.is_special(token_id)
    assert gpt2.encode("a<é think>")[-1] == token_id


def test_ids_outside_the_vocabulary_have_no_bytes(gpt2: Tokenizer) -> None:
    assert gpt2.piece_bytes(gpt2.vocab_size) == b"" and gpt2.piece_bytes(-1) == b""
    assert gpt2.decode([10**6]) == ""


def test_special_tokens_in_a_text_are_parsed_or_not(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("<|im_start|>hi<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2
    assert gpt2.decode(ids) == "hi" and gpt2.decode(ids, skip_special=False) == "<|im_start|>hi<|im_end|>"
    literal = gpt2.encode("<|im_start|>hi", parse_special=False)
    assert 1 not in literal and gpt2.decode(literal) == "<|im_start|>hi"


def test_bos_rules(tmp_path: Path, gpt2: Tokenizer, llama: Tokenizer) -> None:
    assert not gpt2.adds_bos and gpt2.bos_id == 1
    assert llama.adds_bos and llama.encode("hello")[0] == llama.bos_id == 1
    assert llama.encode("hello", add_bos=False)[0] != 1
    assert llama.encode("<s>hello").count(1) == 1, "a BOS that the text has already isn't doubled"
    assert llama.encode("") == [1]
    assert Tokenizer(byte_level(tmp_path / "a", add_bos_token=True)).encode("x")[0] == 1
    assert not Tokenizer(sentencepiece(tmp_path / "b", add_bos_token=False)).adds_bos
    assert not Tokenizer(byte_level(tmp_path / "c", add_bos_token=True, bos_token=None)).adds_bos


def test_end_tokens_come_from_all_sources(gpt2: Tokenizer, llama: Tokenizer, tmp_path: Path) -> None:
    assert gpt2.eos_ids == {0, 2}
    assert llama.eos_ids == {2}
    folder = byte_level(tmp_path, eos_token=None)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, "x", 100000, true]}')
    ends = Tokenizer(folder).eos_ids
    assert ends == {7, 0, 2}, "the list's valid ids, and the end-of-turn tokens of the vocabulary"


def test_training_limits_in_the_file_are_ignored(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(4)
    library.enable_padding(length=50)
    library.save(str(folder / "tokenizer.json"))
    assert Tokenizer(folder).decode(Tokenizer(folder).encode("one two three four")) == "one two three four"
    assert len(Tokenizer(folder).encode("a")) == 1


def test_lone_surrogates_become_replacement_characters(gpt2: Tokenizer) -> None:
    assert gpt2.decode(gpt2.encode("a\udce9b\ud800")) == "a\ufffdb\ufffd"


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"tokenizer\.json: no such file"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(PackageError, match="not a tokenizer"):
        Tokenizer(tmp_path)
    folder = byte_level(tmp_path / "b")
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(PackageError, match=r"tokenizer_config\.json: holds a JSON list"):
        Tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(PackageError, match="cannot be read as JSON"):
        Tokenizer(folder)


def test_other_decoders_are_refused_by_name(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PackageError, match="'WordPiece'"):
        Tokenizer(folder)


def test_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\x00\xff")
    with pytest.raises(EdgerunError) as caught:
        Tokenizer(tmp_path)
    assert "\n" not in str(caught.value)

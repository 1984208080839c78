"""Tokenizers that came through an export say what the originals say."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from edgerun.errors import CheckpointError
from edgerun_exporters.pretokenizers import PRE_TOKENIZERS
from edgerun_exporters.readers.open import open_checkpoint
from edgerun_exporters.tokenizer import write_tokenizer
from edgerun_exporters.vocabulary import Vocabulary, byte_level_tokenizer, sentencepiece_tokenizer

from .made import add_byte_level_vocabulary, byte_level

TEXTS = [
    "",
    " ",
    "the hen in the inn",
    "  two  spaces   three ",
    "tabs\tand\n\nnew\r\nlines \n ",
    "1234567890 12.5 ½ ² Ⅷ ١٢٣",
    "naïve Ünïcode 日本語 кириллица עברית नमस्ते",
    "emoji 🙂👩‍👩‍👧‍👦🇫🇷 end",
    "I'm you'll WE'RE don't 'Tis",
    "code: def f(x):\n    return x**2  # ok!?",
    "<|start|>user\nthe<|end|><|start|>",
    "nul \x00 and \x7f and \u200b\ufeff",
]


def gguf_of(path: Path, fill: Any) -> Any:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_checkpoint(path)


def converted(checkpoint: Any, out: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(tokenizer, tokenizer_config, generation_config) as written."""
    from tokenizers import Tokenizer

    out.mkdir()
    write_tokenizer(checkpoint, out, 128)
    configs = [json.loads((out / name).read_text()) for name in ("tokenizer_config.json", "generation_config.json")]
    return Tokenizer.from_file(str(out / "tokenizer.json")), configs[0], configs[1]


def test_byte_level_gguf(tmp_path: Path) -> None:
    original = byte_level()

    def fill(writer: Any) -> None:
        add_byte_level_vocabulary(writer, original)
        writer.add_chat_template("{{ messages }}")
        writer.add_add_bos_token(True)

    tokenizer, config, generation = converted(gguf_of(tmp_path / "t.gguf", fill), tmp_path / "out")
    for text in TEXTS:
        wanted = original.encode(text).ids
        assert tokenizer.encode(text, add_special_tokens=False).ids == wanted
        assert tokenizer.encode(text).ids == [1, *wanted]
        assert tokenizer.decode(wanted) == original.decode(wanted)
    assert config["chat_template"] == "{{ messages }}"
    assert (config["bos_token"], config["eos_token"]) == ("<|start|>", "<|end|>")
    assert (config["add_bos_token"], config["add_eos_token"]) == (True, False)
    assert generation["eos_token_id"] == [0]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pretokenizer_loses_nothing(name: str) -> None:
    tokens = sorted(json.loads(byte_level().to_str())["model"]["vocab"].items(), key=lambda item: item[1])
    vocabulary = Vocabulary([token for token, _ in tokens], [1] * len(tokens))
    tokenizer = byte_level_tokenizer(vocabulary, PRE_TOKENIZERS[name])
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "a 1234 b's", ["a", "Ġ1234", "Ġb", "'s"]),
        ("smollm", "a 1234", ["a", "Ġ", "1", "2", "3", "4"]),
        ("llama-bpe", "a 12345 B'S!\n\nx", ["a", "Ġ", "123", "45", "ĠB", "'S", "!ĊĊ", "x"]),
        ("qwen2", "12 ab\n", ["1", "2", "Ġab", "Ċ"]),
        ("tekken", "helloWorld 12", ["hello", "World", "Ġ", "1", "2"]),
        ("default", "a,b 12345", ["a", ",", "b", "Ġ", "123", "45"]),
        ("deepseek-coder", "ab 12", ["ab", "Ġ", "1", "2"]),
    ],
)
def test_pretokenizers_split_as_the_originals(name: str, text: str, pieces: list[str]) -> None:
    tokenizer = byte_level_tokenizer(Vocabulary(["a"], [1]), PRE_TOKENIZERS[name])
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


def sentencepiece_vocabulary() -> Vocabulary:
    """As Llama 2's: unknown, BOS, EOS, 256 bytes, pieces with scores, one symbol that the user defined."""
    words = ["the", "▁the", "▁th", "he", "th", "▁t", "in", "▁in", "er", "▁▁", "▁▁▁▁", "日本", "12", "ing", "▁hen", "ll"]
    letters = [*"▁abcdefghijklmnopqrstuvwxyzTISWE0123456789.,:!?'\n", "日", "本", "ï"]
    pieces = words + letters
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces, "<|im|>"]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces), 4]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0]
    return Vocabulary(tokens, types, scores, bos=1, eos=2, unk=0, add_bos=True)


def sentencepiece_ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """SentencePiece's BPE from its definition: merge the neighbours that make the best piece, the leftmost first."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    found: list[int] = []
    for part in text.replace("<|im|>", "\0<|im|>\0").split("\0"):
        if part in ("", "<|im|>"):
            found += [ids[part]] if part else []
            continue
        symbols = list("▁" + part.replace(" ", "▁"))
        while True:
            pairs = [
                (-vocabulary.scores[ids[a + b]], i)
                for i, (a, b) in enumerate(itertools.pairwise(symbols))
                if vocabulary.types[ids.get(a + b, 0)] == 1
            ]
            if not pairs:
                break
            i = min(pairs)[1]
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        for symbol in symbols:
            found += [ids[symbol]] if symbol in ids else [ids[f"<0x{b:02X}>"] for b in symbol.encode()]
    return found


SENTENCEPIECE_TEXTS = [text for text in TEXTS if "\0" not in text] + ["the<|im|>the <|im|> in", "hhhhee thethe▁x"]


def test_sentencepiece_gguf(tmp_path: Path) -> None:
    vocabulary = sentencepiece_vocabulary()

    def fill(writer: Any) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(vocabulary.tokens)
        writer.add_token_types(list(vocabulary.types))
        writer.add_token_scores(list(vocabulary.scores))

    tokenizer, config, generation = converted(gguf_of(tmp_path / "t.gguf", fill), tmp_path / "out")
    for text in SENTENCEPIECE_TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == sentencepiece_ids(vocabulary, text), text
        assert tokenizer.encode(text).ids == [1, *ids]
    assert tokenizer.decode(tokenizer.encode("the naïve 日本語 🙂").ids) == "the naïve 日本語 🙂"
    assert (config["bos_token"], config["add_bos_token"]) == ("<s>", True)
    assert generation == {"bos_token_id": 1, "eos_token_id": [2]}


def test_no_space_prefix() -> None:
    vocabulary = sentencepiece_vocabulary()
    vocabulary.space_prefix = False
    tokenizer = sentencepiece_tokenizer(vocabulary)
    ids = tokenizer.encode("the in", add_special_tokens=False).ids
    assert [vocabulary.tokens[i] for i in ids] == ["the", "▁in"]
    assert tokenizer.decode(ids) == "the in"


def field(number: int, value: int | float | bytes) -> bytes:
    """One protobuf field."""

    def varint(n: int) -> bytes:
        n &= (1 << 64) - 1
        out = bytearray()
        while n > 127:
            out.append(n & 127 | 128)
            n >>= 7
        return bytes([*out, n])

    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def model_proto(vocabulary: Vocabulary, kind: int = 2) -> bytes:
    pieces = b"".join(
        field(1, field(1, token.encode()) + field(2, float(score)) + field(3, type_))
        for token, score, type_ in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True)
    )
    trainer = field(3, kind) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2) + field(43, -1)
    return pieces + field(2, trainer) + field(3, field(1, b"identity") + field(3, 1))


def folder_of(path: Path, model: bytes) -> Any:
    from .made import random_model, save

    folder = save(random_model(num_hidden_layers=1), path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": len(sentencepiece_vocabulary().tokens)}))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("from a file")
    return open_checkpoint(folder)


def test_slow_folder(tmp_path: Path) -> None:
    vocabulary = sentencepiece_vocabulary()
    tokenizer, config, _ = converted(folder_of(tmp_path / "hf", model_proto(vocabulary)), tmp_path / "out")
    for text in SENTENCEPIECE_TEXTS:
        assert tokenizer.encode(text).ids == sentencepiece_ids(vocabulary, text)
    assert tokenizer.encode("<pad>").ids == [len(vocabulary.tokens)]
    assert (config["bos_token"], config["add_bos_token"], config["chat_template"]) == ("<s>", False, "from a file")


def test_slow_folder_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model.*Unigram"):
        converted(folder_of(tmp_path / "hf", model_proto(sentencepiece_vocabulary(), kind=1)), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model.*damaged"):
        converted(folder_of(tmp_path / "hf2", b"\x0a\xffnot a model"), tmp_path / "out2")


def test_fast_folder_is_copied(tmp_path: Path) -> None:
    from .made import random_model, save

    folder = save(random_model(num_hidden_layers=1), tmp_path / "hf")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7], "temperature": 0.6}))
    tokenizer, config, generation = converted(open_checkpoint(folder), tmp_path / "out")
    for text in TEXTS:
        assert tokenizer.encode(text).ids == byte_level().encode(text).ids
    assert generation["temperature"] == 0.6
    assert generation["eos_token_id"][:3] == [0, 1, 7]
    assert config["chat_template"] == "{{ 1 }}"
    assert (config["add_bos_token"], config["bos_token"]) == (False, None)


def test_empty_and_repeated_tokens_keep_their_ids() -> None:
    vocabulary = Vocabulary(["a", "", "a", "b"], [1] * 4)
    assert len(set(vocabulary.tokens)) == 4 and vocabulary.tokens[3] == "b"


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda w: None, "no tokenizer"),
        (lambda w: add_byte_level_vocabulary(w, byte_level(), pre="marsian"), "'marsian'"),
        (lambda w: (w.add_tokenizer_model("bert"), w.add_token_list(["a"])), "'bert'"),
        (lambda w: (w.add_tokenizer_model("llama"), w.add_token_list(["a"])), "scores"),
        (lambda w: (w.add_tokenizer_model("gpt2"), w.add_token_list(["a"])), "merges"),
    ],
)
def test_bad_gguf_vocabularies(fill: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        converted(gguf_of(tmp_path / "t.gguf", fill), tmp_path / "out")

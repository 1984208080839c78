"""Small tokenizers of both kinds, made in place: byte-level BPE and SentencePiece with byte fallback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = ["the quick brown fox jumps over the lazy dog", "Übergröße, naïve café — 日本語のテスト 🎉 hello world 0123 456"]


def _write(folder: Path, tokenizer: Tokenizer, config: dict[str, Any], generation: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def byte_level(folder: Path, **config: Any) -> Path:
    """Every byte has a token, so every byte string can be a sequence of tokens. No BOS rule unless given."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<é think>", special=False)])
    settings = {"bos_token": "<|im_start|>", "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}, **config}
    return _write(folder, tokenizer, settings, {"eos_token_id": [0, 2]})


def sentencepiece(folder: Path, **config: Any) -> Path:
    """The shape of Llama 2's tokenizer.json: U+2581 for spaces, byte fallback, BOS by template."""
    words = ["▁", "▁the", "▁hello", "▁world", "h", "e", "l", "o", "t", "w", "r", "d", "▁t", "he", "▁the"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for word in words:
        vocab.setdefault(word, len(vocab))
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    settings = {"bos_token": "<s>", "eos_token": "</s>", **config}
    return _write(folder, tokenizer, settings, {"bos_token_id": 1, "eos_token_id": 2})

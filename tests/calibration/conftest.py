"""A package with layers enough for DELTA, random weights and a real tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.package import tiny
from tests.text.tokenizers_made import byte_level


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    byte_level(folder, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    shape = tiny.Shape(n_layers=4, head_dim=8, vocab_size=vocab, context_length=512)
    texts = {path.name: path.read_bytes() for path in folder.iterdir()}
    tiny.make(folder, shape)
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    return folder

"""Text to token ids and back, over the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import EdgerunError, PackageError
from edgerun.text.pieces import piece_rule

if TYPE_CHECKING:
    import tokenizers

    from edgerun.text.template import ChatTemplate

# Tokens that end a turn or a text in some family, whatever the model's own files name as "eos" (llama.cpp's list).
END_TOKENS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
)


class Tokenizer:
    """The tokenizer of a model package: `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`.

    Safe to use from several threads. Raises `PackageError` if a file is missing or damaged.

    vocab_size: one more than the largest token id (a model may have more rows, as padding).
    bos_id: the token that starts a text, or None. adds_bos: whether `encode` puts it there by default.
    eos_ids: all tokens that end an answer.
    strips_leading_space: decoding drops the space that SentencePiece puts before the first word.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._path = self.folder / "tokenizer.json"
        self._tokenizer = self._load()
        self._config = _read_json(self.folder / "tokenizer_config.json", missing_ok=True)
        self._generation = _read_json(self.folder / "generation_config.json", missing_ok=True)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        decoder = self._tokenizer.decoder
        self._rule = piece_rule(json.loads(decoder.__getstate__()) if decoder is not None else None, str(self._path))
        self._pieces: dict[int, bytes] = {}
        self.strips_leading_space = self._rule.strips_leading_space
        self.vocab_size: int = max([self._tokenizer.get_vocab_size(with_added_tokens=True), *(i + 1 for i in added)])
        self.bos_id = self._bos()
        self.adds_bos = self._bos_rule()
        self.eos_ids = self._ends()

    def encode(self, text: str, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        add_bos: begin with the BOS token if this tokenizer's own rule says so and the text doesn't begin with it
        already. A rendered chat template carries its own: encode that with `add_bos=False`.
        parse_special: read special tokens written in the text as such; False reads them as ordinary characters.
        """
        tokenizer = self._tokenizer if parse_special else self._literal
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):  # lone surrogates, which no UTF-8 can hold
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        if add_bos and self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD. Unknown ids give no text."""
        data = b"".join(self.piece_bytes(i) for i in ids if not (skip_special and i in self._special))
        text = data.decode("utf-8", "replace")
        return text[1:] if self.strips_leading_space and text.startswith(" ") else text

    def piece_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, which need not be whole characters; b"" for an id that no token has."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._piece(token_id)
        return piece

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a control token, which stands for no text."""
        return token_id in self._special

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it, or None."""
        return self._tokenizer.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def token_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, or None."""
        return self._tokenizer.token_to_id(token)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model says how a conversation is written."""
        return bool(self._config.get("chat_template"))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """A conversation as the model's own template writes it, as transformers' method of that name does.

        messages: mappings with `role` and `content`. add_generation_prompt: end where the answer begins.
        tools: JSON schemas of functions. variables: further names that the template may read.
        Raises `EdgerunError` if there is no template, or if it refuses the conversation.
        """
        template = self._tool_template if tools else self._template
        return template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables)

    @cached_property
    def _template(self) -> ChatTemplate:
        return self._compile("default")

    @cached_property
    def _tool_template(self) -> ChatTemplate:
        return self._compile("tool_use")

    def _compile(self, name: str) -> ChatTemplate:
        from edgerun.text.template import ChatTemplate, choose

        where = self.folder / "tokenizer_config.json"
        source = choose(self._config.get("chat_template"), name, str(where))
        if source is None:
            raise EdgerunError(
                f"{where}: the model has no chat template; use it without one (`edgerun run --raw`, "
                "`Session.generate`), or add a chat_template there"
            )
        return ChatTemplate(source, self._special_texts(), str(where))

    def _special_texts(self) -> dict[str, Any]:
        names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        texts: dict[str, Any] = {name: text for name in names if (text := _content(self._config.get(name)))}
        more = self._config.get("additional_special_tokens")
        if isinstance(more, list):
            texts["additional_special_tokens"] = [text for token in more if (text := _content(token))]
        return texts

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        # An object of its own: the switch is a property of the tokenizer, which other threads are using.
        tokenizer = self._load()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _load(self) -> tokenizers.Tokenizer:
        import tokenizers

        if not self._path.is_file():
            raise PackageError(f"{self._path}: no such file; a model package needs it: export the checkpoint again")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(self._path))
        except Exception as error:  # the library raises bare Exception
            reason = (str(error).splitlines() or ["unreadable"])[0]
            raise PackageError(
                f"{self._path}: not a tokenizer that can be read ({reason}); export the checkpoint again"
            ) from error
        # Some checkpoints carry the limits of their training data, which would silently cut or pad every prompt.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _piece(self, token_id: int) -> bytes:
        token = self._added.get(token_id)
        if token is not None:
            return self._rule.added_bytes(token)
        token = self.token(token_id)
        return b"" if token is None else self._rule.token_bytes(token)

    def _bos(self) -> int | None:
        text = _content(self._config.get("bos_token"))
        if text is not None:
            return self.token_id(text)
        bos_id = self._generation.get("bos_token_id")
        return bos_id if isinstance(bos_id, int) and 0 <= bos_id < self.vocab_size else None

    def _bos_rule(self) -> bool:
        if self.bos_id is None:
            return False
        rule = self._config.get("add_bos_token")
        if isinstance(rule, bool):
            return rule
        ids: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids
        return ids[:1] == [self.bos_id]

    def _ends(self) -> frozenset[int]:
        eos = self._generation.get("eos_token_id")
        ids = set(eos if isinstance(eos, list) else [eos])
        text = _content(self._config.get("eos_token"))
        if text is not None:
            ids.add(self.token_id(text))
        spelt = set(self._added.values())
        ids.update(self.token_id(token) for token in END_TOKENS if token in spelt)
        return frozenset(i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < self.vocab_size)


def _content(token: object) -> str | None:
    """A special token of tokenizer_config.json is a text, or an object with that text as its `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _read_json(path: Path, *, missing_ok: bool) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise PackageError(f"{path}: no such file; export the checkpoint again") from None
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: cannot be read as JSON ({error}); export the checkpoint again") from error
    if not isinstance(value, dict):
        raise PackageError(f"{path}: holds a JSON {type(value).__name__}, not an object; export the checkpoint again")
    return value

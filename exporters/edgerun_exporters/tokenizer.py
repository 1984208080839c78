"""The tokenizer's way into a package: tokenizer.json, tokenizer_config.json and generation_config.json.

tokenizer_config.json always has `bos_token`, `eos_token` (strings or null), `add_bos_token`, `add_eos_token` (booleans)
and, if the checkpoint has one, `chat_template` (a string, or a list of {"name", "template"} with a "default").
generation_config.json always has `eos_token_id`: a list of all tokens that end an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import CheckpointError

from .checkpoint import Checkpoint
from .pretokenizers import PRE_TOKENIZERS
from .readers.safetensors import read_json
from .sentencepiece import read_sentencepiece
from .vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary, byte_level_tokenizer, sentencepiece_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<end_of_utterance>",
    "<EOT>",
    "</s>",
    "<｜end▁of▁sentence｜>",
)
"""Special tokens that end an answer under whatever id (llama.cpp's list of end-of-generation tokens)."""
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def write_tokenizer(checkpoint: Checkpoint, out: Path, context_length: int) -> list[str]:
    """Writes the three files into `out` and returns notes for the user."""
    if checkpoint.format == "gguf":
        tokenizer, config, ends = _from_gguf(checkpoint)
        generation: dict[str, Any] = {}
    else:
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        tokenizer, config = _from_folder(folder)
        generation = _optional(folder / "generation_config.json")
        ends = _ids(generation.get("eos_token_id")) + _ids(checkpoint.metadata.get("eos_token_id"))
    special = {
        token.content: id_ for id_, token in sorted(tokenizer.get_added_tokens_decoder().items()) if token.special
    }
    eos = tokenizer.token_to_id(config["eos_token"]) if config.get("eos_token") else None
    bos = tokenizer.token_to_id(config["bos_token"]) if config.get("bos_token") else None
    ends = [*([eos] if eos is not None else []), *ends, *(id_ for text, id_ in special.items() if text in _ENDS)]
    generation["eos_token_id"] = list(dict.fromkeys(ends))
    if bos is not None:
        generation.setdefault("bos_token_id", bos)
    begins = tokenizer.encode("a").ids
    config.setdefault("add_bos_token", bool(begins) and bos is not None and begins[0] == bos)
    config.setdefault("add_eos_token", len(begins) > 1 and eos is not None and begins[-1] == eos)
    config.setdefault("model_max_length", context_length)
    config.setdefault("clean_up_tokenization_spaces", False)
    (out / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    _write(out / "tokenizer_config.json", config)
    _write(out / "generation_config.json", generation)
    notes = []
    if "chat_template" not in config:
        notes.append("the checkpoint has no chat template: prompts are taken as they are")
    if not generation["eos_token_id"]:
        notes.append("the checkpoint names no end-of-text token: answers end at the length asked for")
    return notes


def _from_gguf(checkpoint: Checkpoint) -> tuple[Tokenizer, dict[str, Any], list[int]]:
    values, where = checkpoint.metadata, checkpoint.path
    key = "tokenizer.ggml."
    model = values.get(key + "model")
    tokens = values.get(key + "tokens")
    if not tokens or not isinstance(tokens, list) or model is None:
        raise CheckpointError(f"{where}: {key}tokens is missing: the file has no tokenizer; use a complete GGUF")
    types = values.get(key + "token_type", [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise CheckpointError(f"{where}: {key}token_type has {len(types)} entries for {len(tokens)} tokens")
    sentencepiece = model == "llama"
    vocabulary = Vocabulary(
        list(tokens),
        [int(kind) for kind in types],
        scores=values.get(key + "scores", ()),
        merges=values.get(key + "merges", ()),
        bos=values.get(key + "bos_token_id", 1 if sentencepiece else None),
        eos=values.get(key + "eos_token_id", 2 if sentencepiece else None),
        unk=values.get(key + "unknown_token_id", 0 if sentencepiece else None),
        pad=values.get(key + "padding_token_id"),
        add_eos=bool(values.get(key + "add_eos_token", False)),
        space_prefix=bool(values.get(key + "add_space_prefix", True)),
    )
    if sentencepiece:
        if len(vocabulary.scores) != len(tokens):
            raise CheckpointError(f"{where}: {key}scores is missing or short; use a complete GGUF")
        vocabulary.add_bos = bool(values.get(key + "add_bos_token", True))
        tokenizer = sentencepiece_tokenizer(vocabulary)
    elif model == "gpt2":
        if key + "merges" not in values:
            raise CheckpointError(f"{where}: {key}merges is missing; use a complete GGUF")
        name = values.get(key + "pre", "default")
        pre = PRE_TOKENIZERS.get(name)
        if pre is None:
            raise CheckpointError(f"{where}: {key}pre {name!r} is an unknown pre-tokenizer; use another conversion")
        vocabulary.add_bos = bool(values.get(key + "add_bos_token", pre.add_bos))
        tokenizer = byte_level_tokenizer(vocabulary, pre)
    else:
        raise CheckpointError(f"{where}: {key}model {model!r} is not supported (supported: gpt2, llama)")
    config = _config(vocabulary)
    template = values.get("tokenizer.chat_template")
    if isinstance(template, str):
        prefix = "tokenizer.chat_template."
        named = [{"name": k.removeprefix(prefix), "template": v} for k, v in values.items() if k.startswith(prefix)]
        config["chat_template"] = [{"name": "default", "template": template}, *named] if named else template
    ends = [int(values[key + name]) for name in ("eot_token_id", "eom_token_id") if key + name in values]
    return tokenizer, config, ends


def _from_folder(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    config = {**_optional(folder / "special_tokens_map.json"), **_optional(folder / "tokenizer_config.json")}
    fast, slow = folder / "tokenizer.json", folder / "tokenizer.model"
    if fast.exists():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(fast))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{fast}: cannot be read ({error}); download it again") from None
    elif slow.exists():
        vocabulary = read_sentencepiece(slow)
        _extend(vocabulary, folder, config)
        tokenizer = sentencepiece_tokenizer(vocabulary)
        config = {**_config(vocabulary), **{k: v for k, v in config.items() if v is not None}}
    else:
        raise CheckpointError(f"{folder}: neither tokenizer.json nor tokenizer.model; download the whole folder")
    for role in _ROLES:
        config[role] = _text(config.get(role))
    template = _template_files(folder) or config.get("chat_template")
    config.pop("chat_template", None)
    if template:
        config["chat_template"] = template
    for flag in ("add_bos_token", "add_eos_token"):
        if not isinstance(config.get(flag), bool):
            config.pop(flag, None)
    return tokenizer, config


def _extend(vocabulary: Vocabulary, folder: Path, config: Mapping[str, Any]) -> None:
    """Adds what a slow tokenizer keeps beside its tokenizer.model: added tokens and its BOS and EOS rules."""
    added: dict[int, tuple[str, bool]] = {
        int(id_): (text, False) for text, id_ in _optional(folder / "added_tokens.json").items()
    }
    for id_, token in (config.get("added_tokens_decoder") or {}).items():
        added[int(id_)] = str(token["content"]), bool(token.get("special"))
    types, scores = list(vocabulary.types), list(vocabulary.scores)
    for id_, (text, special) in sorted(added.items()):
        if id_ == len(vocabulary.tokens):
            vocabulary.tokens.append(text)
            types.append(0)
            scores.append(0.0)
        if id_ > len(vocabulary.tokens) or vocabulary.tokens[id_] != text:
            raise CheckpointError(f"{folder}: added token {text!r} has id {id_}, which tokenizer.model has otherwise")
        types[id_] = CONTROL if special else USER_DEFINED
    vocabulary.types, vocabulary.scores = types, scores
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    for role in ("bos", "eos", "unk", "pad"):
        named = _text(config.get(role + "_token"))
        if named in ids:
            setattr(vocabulary, role, ids[named])
    vocabulary.add_bos = bool(config.get("add_bos_token", True))
    vocabulary.add_eos = bool(config.get("add_eos_token", False))
    vocabulary.space_prefix = bool(config.get("add_prefix_space", vocabulary.space_prefix))


def _config(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary.text(vocabulary.bos),
        "eos_token": vocabulary.text(vocabulary.eos),
        "unk_token": vocabulary.text(vocabulary.unk),
        "pad_token": vocabulary.text(vocabulary.pad),
        "add_bos_token": vocabulary.add_bos and vocabulary.text(vocabulary.bos) is not None,
        "add_eos_token": vocabulary.add_eos and vocabulary.text(vocabulary.eos) is not None,
    }


def _template_files(folder: Path) -> str | list[dict[str, str]] | None:
    """chat_template.jinja, and additional_chat_templates/NAME.jinja as tokenizer_config.json would list them."""
    main = folder / "chat_template.jinja"
    if not main.exists():
        return None
    default = main.read_text("utf-8")
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if not others:
        return default
    named = [{"name": path.stem, "template": path.read_text("utf-8")} for path in others]
    return [{"name": "default", "template": default}, *named]


def _text(token: Any) -> str | None:
    """A token as tokenizer_config.json writes it: a string, or an object with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _ids(value: Any) -> list[int]:
    return [int(i) for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n", "utf-8")

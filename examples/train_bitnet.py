"""Trains a small ternary language model (BitNet b1.58) from nothing, on two CPU cores in a quarter of an hour.

python examples/train_bitnet.py --out DIR [--minutes 14]

DIR/packed then holds it in the form of microsoft/bitnet-b1.58-2B-4T: four ternary weights to a byte. DIR/master has
the same model's bfloat16 weights, which round to those. Needs torch and transformers: pip install 'edgerun[test]'.

The text is the documentation that comes with every Python: the language reference in `pydoc_data.topics` and the
docstrings of the standard library. Copyright Python Software Foundation, licence PSF-2.0.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import BitNetConfig, BitNetForCausalLM, GenerationConfig
from transformers.integrations.bitnet import AutoBitLinear, pack_weights

SEED = 0
VOCAB = 1024
CONTEXT = 512
BATCH = 2
EVALUATIONS = 10
TERNARY_LEARNING_RATE, OTHER_LEARNING_RATE = 2.4e-2, 1.2e-2
WARM_UP = 0.03
HELD_OUT = 0.05

BOS, EOS = "<|begin_of_text|>", "<|eot_id|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a small BitNet b1.58 model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the folders packed and master")
    parser.add_argument("--minutes", type=float, default=14.0, help="time to train for")
    arguments = parser.parse_args()
    random.seed(SEED)
    torch.manual_seed(SEED)
    # transformers compiles the functions that quantise; they run without that too, and need no C++ compiler then.
    torch.compiler.set_stance("force_eager")

    documents = list(read_documents())
    random.shuffle(documents)
    cut = int(len(documents) * HELD_OUT)
    tokenizer = train_tokenizer(documents[cut:])
    held_out, text = (token_ids(tokenizer, part) for part in (documents[:cut], documents[cut:]))
    entropy = unigram_entropy(held_out)
    model = new_model(tokenizer)
    ternary = sum(module.weight.numel() for module in model.modules() if isinstance(module, AutoBitLinear))
    print(f"{len(text)} tokens to learn from, {len(held_out)} held out, {ternary / 1e6:.1f} million ternary weights")
    print(f"unigram entropy {entropy:.3f} nats per token")

    train(model, text, held_out, arguments.minutes * 60)
    round_to_bfloat16(model)
    loss = evaluate(model, held_out)
    print(f"held-out loss of the saved model {loss:.3f}, {loss / entropy:.0%} of the unigram entropy")
    print(continue_text(model, tokenizer, "The function returns"))

    save(arguments.out / "master", model, tokenizer, master_weights(model), "online")
    save(arguments.out / "packed", model, tokenizer, packed_weights(model), "offline")


def read_documents() -> Iterator[str]:
    """The prose of every topic and docstring, one line per paragraph, no paragraph twice."""
    seen: set[str] = set()
    for document in (*topics.values(), *docstrings()):
        paragraphs = [" ".join(paragraph.split()) for paragraph in document.split("\n\n")]
        new = [p for p in dict.fromkeys(paragraphs) if is_prose(p) and p not in seen]
        seen.update(new)
        if new:
            yield "\n\n".join(new)


def docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if NOT_THE_LIBRARY.isdisjoint(path.relative_to(library).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield ast.get_docstring(node) or ""


def is_prose(paragraph: str) -> bool:
    """Not a table, a grammar or a piece of code."""
    plain = sum(character.isalpha() or character in " ,.'\"" for character in paragraph)
    return len(paragraph) >= 40 and plain >= 0.9 * len(paragraph)


def train_tokenizer(documents: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[BOS, EOS], **options)
    tokenizer.train_from_iterator(documents, trainer)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    return tokenizer


def token_ids(tokenizer: Tokenizer, documents: list[str]) -> Tensor:
    eos = tokenizer.token_to_id(EOS)
    return torch.tensor([i for encoding in tokenizer.encode_batch(documents) for i in (*encoding.ids, eos)])


def unigram_entropy(ids: Tensor) -> float:
    """The lowest loss that a model could reach which does not look at the tokens before."""
    shares = ids.bincount().double() / len(ids)
    return float(torch.special.entr(shares).sum())


def new_model(tokenizer: Tokenizer) -> BitNetForCausalLM:
    config = BitNetConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        tie_word_embeddings=True,
        architectures=["BitNetForCausalLM"],
    )
    model = BitNetForCausalLM(config)
    # Larger than transformers' own: what token it is would drown in what the first layers add to it.
    nn.init.normal_(model.model.embed_tokens.weight, std=config.hidden_size**-0.5)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            linear = AutoBitLinear(module.in_features, module.out_features, bias=False, online_quant=True)
            linear.weight = module.weight
            model.model.set_submodule(name, linear)
    return model


def train(model: BitNetForCausalLM, text: Tensor, held_out: Tensor, seconds: float) -> None:
    """Trains for a time rather than for a number of steps, so that it ends when it should on any machine."""
    muon, adam = optimizers = new_optimizers(model)
    start = time.monotonic()
    step = evaluations = 0
    losses: list[float] = []
    while (progress := (time.monotonic() - start) / seconds) < 1:
        muon.param_groups[0]["lr"] = TERNARY_LEARNING_RATE * schedule(progress)
        adam.param_groups[0]["lr"] = OTHER_LEARNING_RATE * schedule(progress)
        ids = text[torch.randint(len(text) - CONTEXT, (BATCH, 1)) + torch.arange(CONTEXT)]
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        losses.append(loss.item())
        if progress * EVALUATIONS >= evaluations + 1:
            evaluations += 1
            mean, elsewhere = sum(losses) / len(losses), evaluate(model, held_out)
            elapsed = time.monotonic() - start
            print(f"{elapsed:4.0f} s, step {step}: loss {mean:.3f}, held out {elsewhere:.3f}", flush=True)
            losses.clear()


def new_optimizers(model: BitNetForCausalLM) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the ternary weights, which learn from far fewer tokens with it, and Adam for all others."""
    ternary = [parameter for name, parameter in model.named_parameters() if name.endswith("_proj.weight")]
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith("_proj.weight")]
    muon = torch.optim.Muon(ternary, weight_decay=0.05, ns_steps=3, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.Adam(others, betas=(0.9, 0.95), fused=True)


def schedule(progress: float) -> float:
    """A linear warm-up, then half a cosine down to nothing."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


@torch.inference_mode()
def evaluate(model: BitNetForCausalLM, ids: Tensor) -> float:
    windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, 1, CONTEXT)
    return sum(model(input_ids=ids, labels=ids, use_cache=False).loss.item() for ids in windows) / len(windows)


@torch.no_grad()
def round_to_bfloat16(model: BitNetForCausalLM) -> None:
    """Only the parameters: `model.bfloat16()` would round the frequencies of the rotary embedding as well."""
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())


def continue_text(model: BitNetForCausalLM, tokenizer: Tokenizer, prompt: str) -> str:
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=100, do_sample=False)
    return tokenizer.decode(output[0].tolist())


def master_weights(model: BitNetForCausalLM) -> dict[str, Tensor]:
    return {name: parameter.detach().bfloat16() for name, parameter in model.named_parameters()}


def packed_weights(model: BitNetForCausalLM) -> dict[str, Tensor]:
    weights = master_weights(model)
    for module_name, module in model.named_modules():
        if isinstance(module, AutoBitLinear):
            name = f"{module_name}.weight"
            weight = weights[name].float()  # what the ternary weights are is decided in float32, as in WeightQuant
            scale = 1.0 / weight.abs().mean().clamp(min=1e-5)
            weights[name] = pack_weights((weight * scale).round().clamp(-1, 1))
            weights[f"{name}_scale"] = (1.0 / scale).bfloat16().view(1)
    return weights


def save(folder: Path, model: BitNetForCausalLM, tokenizer: Tokenizer, weights: dict[str, Tensor], mode: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    config.dtype = "bfloat16"
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "modules_to_not_convert": None}
    config.quantization_config = {**quantization, "quantization_mode": mode}
    config.save_pretrained(folder)
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    GenerationConfig(**ids, do_sample=True, temperature=0.6, top_p=0.9).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": BOS, "eos_token": EOS, "chat_template": CHAT_TEMPLATE, "model_max_length": CONTEXT}
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Fine-tunes a small Llama on a task of finetune_tasks.py, on the processor, and writes it as safetensors.

python examples/finetune.py TASK OUT [--base smollm2] [--steps 120] [--decay 0.01]

The base may be anything that edgerun exports (a GGUF file's weights are what it dequantises to). `--decay` above 0
trains with AdamR, so that `edgerun variant create` can drop more of what training changed. All linear layers are
trained; the embedding, which is also the output head, and the norms stay. `--seconds` trains in pieces: run it again
until it says that OUT is written. Needs torch and transformers: pip install 'edgerun[test]'.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from adamr import AdamR
from finetune_tasks import TASKS, Example, examples
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from edgerun.text.tokenizer import Tokenizer
from edgerun_exporters.checkpoint import Checkpoint
from edgerun_exporters.families import Description, describe
from edgerun_exporters.original import open_original
from edgerun_exporters.tokenizer import write_tokenizer
from edgerun_exporters.variants.batch import answer_end

IGNORED = -100
WARM_UP = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tunes a Llama on a small task.")
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("out", type=Path, help="folder for the fine-tuned checkpoint")
    parser.add_argument("--base", default="smollm2", help="what to start from (default: smollm2)")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=8, help="examples a step")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--decay", type=float, default=0.0, help="AdamR's lambda; 0: plain Adam")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long; run again to go on")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)

    base = open_original(arguments.base)
    description = describe(base)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(base, arguments.out, description.context_length)
    tokenizer = Tokenizer(arguments.out)
    model = new_model(description)
    model.load_state_dict(weights(base, description), strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("_proj.weight"))
    optimizer = AdamR([p for p in model.parameters() if p.requires_grad], lr=arguments.lr, decay=arguments.decay)
    if train(model, optimizer, tokenizer, arguments):
        save(arguments.out, model)
        print(f"{arguments.out} is written")


def new_model(description: Description) -> LlamaForCausalLM:
    """An untrained model of the base's sizes."""
    d = description
    plain = d.rope_theta ** -(np.arange(0, d.head_dim, 2) / d.head_dim)
    if d.family != "llama" or not np.allclose(d.inv_freq, plain, rtol=1e-5):
        raise SystemExit(f"{d.name}: this example trains only plain Llama models, without RoPE scaling")
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=d.vocab_size,
            hidden_size=d.hidden_size,
            intermediate_size=d.intermediate_size,
            num_hidden_layers=len(d.layers),
            num_attention_heads=d.n_heads,
            num_key_value_heads=d.n_kv_heads,
            head_dim=d.head_dim,
            max_position_embeddings=d.context_length,
            rms_norm_eps=d.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": d.rope_theta},
            tie_word_embeddings=d.output is None,
        )
    )


def weights(base: Checkpoint, description: Description) -> dict[str, Tensor]:
    """The base's weights by transformers' names, dequantised to float32."""
    state = {"model.norm.weight": torch.from_numpy(description.final_norm)}
    for i, layer in enumerate(description.layers):
        state[f"model.layers.{i}.input_layernorm.weight"] = torch.from_numpy(layer.input_norm)
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = torch.from_numpy(layer.post_attention_norm)
    for matrix in description.matrices():
        name = matrix.name.replace(".attention.", ".self_attn.")
        name = {"embedding.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}.get(
            name, f"model.{name}"
        )
        state[name] = torch.from_numpy(np.ascontiguousarray(matrix.floats(base, 0, matrix.rows)))
    return state


def train(model: LlamaForCausalLM, optimizer: AdamR, tokenizer: Tokenizer, arguments: argparse.Namespace) -> bool:
    """Whether all steps are done; if not, what is needed to go on lies in OUT.training."""
    data = examples(arguments.task, arguments.steps * arguments.batch, "train", arguments.seed)
    saved = arguments.out.with_name(f"{arguments.out.name}.training")
    first = 0
    if saved.exists():
        state = torch.load(saved)
        first = state["step"]
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
    start = time.monotonic()
    for step in range(first, arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = arguments.lr * schedule(step / arguments.steps)
        ids, labels = batch(tokenizer, data[step * arguments.batch : (step + 1) * arguments.batch])
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(model, ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        elapsed = time.monotonic() - start
        if step % 10 == 9 or step + 1 == arguments.steps:
            print(f"{elapsed:4.0f} s, step {step + 1}: loss {loss.item():.4f}", flush=True)
        if elapsed > arguments.seconds and step + 1 < arguments.steps:
            trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
            torch.save({"step": step + 1, "model": trained, "optimizer": optimizer.state_dict()}, saved)
            return False
    saved.unlink(missing_ok=True)
    return True


def schedule(progress: float) -> float:
    """A linear warm-up, then half a cosine down to nothing."""
    if progress < WARM_UP:
        return (progress + 1e-3) / WARM_UP
    return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def batch(tokenizer: Tokenizer, some: list[Example]) -> tuple[Tensor, Tensor]:
    """Token ids and labels [examples, longest]: the chat template's text; only the answer and its end are learnt."""
    rows = []
    end = answer_end(tokenizer)
    for prompt, answer in some:
        asked = tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
        before = tokenizer.encode(asked, add_bos=False)
        after = [*tokenizer.encode(answer, add_bos=False), *end]
        rows.append((before + after, [IGNORED] * len(before) + after))
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows])
    return ids, labels


def answer_loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the answers' tokens; logits are computed for these only. Padding lies behind the text,
    where causal attention lets nobody see it."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    kept = wanted != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[kept]).float(), wanted[kept])


def save(folder: Path, model: LlamaForCausalLM) -> None:
    """As transformers does it, the embedding once if it is the output head too. In float32: what a quantised base
    dequantises to has no exact bfloat16, and the rounding error would be as large as what training changed."""
    kept = {n: p.detach().contiguous() for n, p in model.named_parameters()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = "float32"
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)


if __name__ == "__main__":
    main()

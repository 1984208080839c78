"""What attention policies cost and what they save: KL, perplexity, needles, questions, speed by depth, with figures.

    python -m benchmarks.attention --text FILE [--model smollm2] [--only kl,needle,choice,qa,speed] [SPEC ...]

FILE is long prose, cut into windows and haystacks. Every policy is compared with full attention in the same arithmetic,
on the same tokens, needles and questions. Speeds are medians over parts of 16 decoded tokens, all policies in turn, so
that other programs disturb them alike: give the machine to them alone.

Results go to benchmarks/attention.json as they come, and a run goes on where an earlier one ended; then the figures
benchmarks/attention-kl.png, attention-needles-N.png and attention-speed.png are drawn, and benchmarks/attention.md is
written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import edgerun
from edgerun.attention.spec import FULL
from edgerun.cli.progress import ProgressBar
from edgerun.measure import plots
from edgerun.measure.evaluate import ModelScorer, evaluate
from edgerun.measure.tasks import choice, needle, qa, samples
from edgerun.measure.tasks.reader import SessionReader
from edgerun.measure.tasks.score import scores
from edgerun.model import Model
from edgerun.sparsity.spec import NONE

HERE = Path(__file__).parent
SPECS = (
    "deltallm:theta=0.3",
    "deltallm:theta=0.5",
    "delta:budget=512,select=2/8/14/20",
    "delta:budget=1024,select=2/8/14/20",
    "deltallm:theta=0.3+delta:budget=512,select=2/8/14/20",
    "deltallm:theta=0.5+delta:budget=512,select=2/8/14/20",
)
KINDS = ("kl", "needle", "choice", "qa", "speed")
PART = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", default=SPECS, metavar="SPEC")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--only", default=",".join(KINDS), help="of kl, needle, choice, qa, speed")
    parser.add_argument("--context", type=int, default=4096, help="tokens in a window for KL")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--lengths", default="1000,2000,4000", help="of haystacks")
    parser.add_argument("--repeat", type=int, default=2, help="needles of each length and depth")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--depths", default="1000,2000,4000,8000", help="at which decoding is timed")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    wanted = args.only.split(",")
    results = Results(HERE / "attention.json")
    text = args.text.read_text("utf-8")
    lengths, depths = ([int(n) for n in some.split(",")] for some in (args.lengths, args.depths))
    known: dict[Any, Any] = {}  # what full attention gives, which all policies are compared with
    with edgerun.load(args.model, threads=args.threads) as model:
        for spec in args.specs:
            about = {"model": args.model, "attention": spec}
            if "kl" in wanted:
                cell = about | {"kind": "kl", "context": args.context, "windows": args.windows}
                results.measure(cell, lambda s=spec: distance(model, s, text, args.context, args.windows))
            if "needle" in wanted:
                cell = about | {"kind": "needle", "lengths": lengths, "repeat": args.repeat}
                results.measure(cell, lambda s=spec: needles(model, s, known, text, lengths, args.repeat))
            for kind, name, shots in (("choice", "boolq", 2), ("choice", "piqa", 8), ("qa", "disflqa", 4)):
                if kind in wanted:
                    cell = about | {"kind": kind, "data": name, "questions": args.questions, "shots": shots}
                    results.measure(
                        cell, lambda s=spec, n=name, k=shots: questions(model, s, known, n, args.questions, k)
                    )
        if "speed" in wanted:
            for depth in depths:
                cell = {"model": args.model, "kind": "speed", "depth": depth, "specs": [FULL, *args.specs]}
                results.measure(cell | {"threads": model.threads}, lambda d=depth: speeds(model, args.specs, text, d))
    figures(results, args.model)
    (HERE / "attention.md").write_text(tables(results), "utf-8")


def distance(model: Model, spec: str, text: str, context: int, windows: int) -> dict[str, Any]:
    """KL and perplexity in the second halves of `windows` windows of `context` tokens."""
    scorer = ModelScorer(model, spec)
    tokens = scorer.encode(text)[: context * windows]
    reference = ModelScorer(model, FULL, NONE, stepwise=scorer.stepwise)
    with ProgressBar() as progress:
        result = evaluate(scorer, tokens, window=context, reference=reference, progress=progress)
    return {
        "tokens": result.tokens,
        "kl_mean": result.kl_mean,
        "kl_stderr": result.kl_stderr,
        "top1_agreement": result.top1_agreement,
        "perplexity": result.perplexity,
        "reference_perplexity": result.reference_perplexity,
        "attention_sparsity": scorer.attention_sparsity,
        "sparsity_outside_window": scorer.sparsity_outside_window,
    }


def needles(
    model: Model, spec: str, known: dict[Any, Any], text: str, lengths: list[int], repeat: int
) -> dict[str, Any]:
    hidden = needle.needles(model.tokenizer, text, lengths, needle.even_depths(5), repeat, model.context)
    ours, theirs, sparsity = paired(model, spec, known, "needle", lambda reader: needle.measure(reader, hidden))
    found = theirs["found"] > 0
    return summary(ours, theirs, sparsity) | {
        "needles": len(hidden),
        "found_by_full": int(found.sum()),
        "kept": float(ours["found"][found].mean()) if found.any() else None,
        "cells": [asdict(cell) for cell in needle.cells(hidden, ours["found"], theirs["found"])],
    }


def questions(model: Model, spec: str, known: dict[Any, Any], name: str, count: int, shots: int) -> dict[str, Any]:
    path = samples.fetch(name)
    if samples.SAMPLES[name].task == "choice":
        choices = choice.asked(choice.load(path), count, shots)
        return summary(*paired(model, spec, known, name, lambda reader: choice.measure(reader, choices)))
    asked = qa.asked(qa.load(path), count, shots)
    return summary(*paired(model, spec, known, name, lambda reader: qa.measure(reader, asked)))


def paired(
    model: Model, spec: str, known: dict[Any, Any], name: str, measure: Callable[[SessionReader], Any]
) -> tuple[Any, Any, float]:
    """What the policy gives, what full attention gives, and the policy's sparsity."""
    reader = SessionReader(model, spec)
    key = name, reader.stepwise
    if key not in known:
        known[key] = measure(SessionReader(model, FULL, NONE, stepwise=reader.stepwise))
    return measure(reader), known[key], reader.attention_sparsity


def summary(ours: Any, theirs: Any, sparsity: float) -> dict[str, Any]:
    metrics = {name: asdict(score) for name, score in scores(ours, theirs).items()}
    return {"metrics": metrics, "attention_sparsity": sparsity}


def speeds(model: Model, specs: list[str], text: str, depth: int) -> dict[str, Any]:
    """Decoded tokens per second behind `depth` tokens of the text, by policy: how many keys DeltaLLM keeps depends on
    what they are of."""
    tokens = model.tokenizer.encode(text)[: depth + PART]
    sessions = {spec: model.session(attention=spec) for spec in (FULL, *specs)}
    for session in sessions.values():
        session.prefill(tokens[:depth])
        session.decode(tokens[depth])
    spent: dict[str, list[float]] = {spec: [] for spec in sessions}
    room = (model.context - depth - 1) // PART
    for _ in range(min(6, room)):
        for spec, session in sessions.items():
            start = time.perf_counter()
            for token in tokens[depth:]:
                session.decode(token)
            spent[spec].append(time.perf_counter() - start)
    return {"decode_tokens_per_s": {spec: PART / statistics.median(times) for spec, times in spent.items()}}


class Results:
    """Cells (what was measured) with what came out, in a file that is written after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.cells = self._stored()

    def _stored(self) -> list[dict[str, Any]]:
        stored: list[dict[str, Any]] = json.loads(self._path.read_text("utf-8")) if self._path.is_file() else []
        return stored

    def measure(self, cell: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
        if any(old["cell"] == cell for old in self.cells):
            return
        start = time.monotonic()
        result = work()
        self.cells = self._stored()  # another run may have added some meanwhile
        self.cells.append({"cell": cell, "result": result, "seconds": round(time.monotonic() - start)})
        beside = self._path.with_suffix(".partial")
        beside.write_text(json.dumps(self.cells, indent=1), "utf-8")
        os.replace(beside, self._path)
        print(json.dumps(cell), json.dumps({k: v for k, v in result.items() if k != "cells"}), flush=True)

    def of(self, kind: str, model: str | None = None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        pairs = [(each["cell"], each["result"]) for each in self.cells if each["cell"]["kind"] == kind]
        return [pair for pair in pairs if model is None or pair[0]["model"] == model]


def figures(results: Results, model: str) -> None:
    by_family: dict[str, list[tuple[float, float, str]]] = {}
    for cell, result in results.of("kl", model):
        spec = cell["attention"]
        family = f"{'+'.join(part.partition(':')[0] for part in spec.split('+'))}, {cell['context']:,} tokens"
        word = ", ".join(re.findall(r"(?:theta|budget)=[^,+]*", spec))
        by_family.setdefault(family, []).append((result["attention_sparsity"], result["kl_mean"], word))
    series = {name: sorted(points) for name, points in by_family.items()}
    if series:
        plots.curves(
            HERE / "attention-kl.png",
            {name: [(100 * sparsity, kl) for sparsity, kl, _ in points] for name, points in series.items()},
            title=f"{model}: what leaving keys out costs",
            x="keys not read by the scored tokens (%)",
            y="mean KL from full attention (nats a token)",
            log_y=True,
            marks={name: [word for *_, word in points] for name, points in series.items()},
        )
    for i, (cell, result) in enumerate(results.of("needle", model)):
        cells = [needle.Cell(**each) for each in result["cells"]]
        plots.needles(HERE / f"attention-needles-{i}.png", cells, cell["attention"], FULL)
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell, result in results.of("speed", model):
        for spec, speed in result["decode_tokens_per_s"].items():
            lines.setdefault(spec, []).append((cell["depth"], speed))
    if lines:
        plots.curves(
            HERE / "attention-speed.png",
            {spec: sorted(points) for spec, points in lines.items()},
            title=f"{model}: decoding behind a long context",
            x="tokens in the cache",
            y="decoded tokens/s",
        )


def tables(results: Results) -> str:
    lines = [
        "Written by `python -m benchmarks.attention`; the differences are to full attention, ± one standard error.",
        "",
    ]
    if kl := results.of("kl"):
        lines += [
            "| attention | window | tokens scored | keys not read | not kept behind the window | mean KL | same top "
            "token | perplexity (full) |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for cell, r in kl:
        outside = r["sparsity_outside_window"]
        lines.append(
            f"| `{cell['attention']}` | {cell['context']:,} | {r['tokens']:,} | {r['attention_sparsity']:.1%} | "
            f"{'' if outside is None else f'{outside:.1%}'} | {r['kl_mean']:.4f} ± {r['kl_stderr']:.4f} | "
            f"{r['top1_agreement']:.1%} | {r['perplexity']:.2f} ({r['reference_perplexity']:.2f}) |"
        )
    if found := results.of("needle"):
        lines += ["", "| attention | needles, lengths | full finds | of these found too |", "|---|---|---|---|"]
    for cell, r in found:
        lengths = ", ".join(f"{length:,}" for length in cell["lengths"])
        kept = "" if r["kept"] is None else f"{r['kept']:.1%}"
        lines.append(f"| `{cell['attention']}` | {r['needles']}, {lengths} | {r['found_by_full']} | {kept} |")
    if asked := [*results.of("choice"), *results.of("qa")]:
        lines += ["", "| attention | questions | score | full | difference |", "|---|---|---|---|---|"]
    for cell, r in asked:
        for name, m in r["metrics"].items():
            lines.append(
                f"| `{cell['attention']}` | {cell['data']}, {cell['questions']}, {cell['shots']} shots: {name} | "
                f"{m['mean']:.3f} ± {m['stderr']:.3f} | {m['against']:.3f} | "
                f"{m['difference']:+.3f} ± {m['difference_stderr']:.3f} |"
            )
    for cell, r in results.of("speed"):
        full = r["decode_tokens_per_s"][FULL]
        lines += ["", f"Decoding behind {cell['depth']:,} tokens, {cell['threads']} threads:", ""]
        lines += ["| attention | tokens/s | of full |", "|---|---|---|"]
        lines += [f"| `{s}` | {v:.1f} | {v / full:.2f} |" for s, v in r["decode_tokens_per_s"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""A table of benchmarks/speed.py beside an older one, in Markdown.

python benchmarks/compare.py NEW.json OLD.json      OLD may be missing: the first time there is none
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMALLER_IS_BETTER = ("s", "ms", "MiB")


def lines(new: dict[str, Any], old: dict[str, Any] | None) -> Iterator[str]:
    here = new["machine"]
    yield f"{here['processor']}, {here['cores']} cores, kernels {here['instruction_set']}, {here['date']}"
    if old is not None and old["machine"]["processor"] != here["processor"]:
        yield f"\nThe last table is of another processor, {old['machine']['processor']}: not compared."
        old = None
    before = {(row["work"], row["threads"]): row["medians"]["edgerun"] for row in (old or {"rows": []})["rows"]}
    yield "\n| work | threads | edgerun | the last time | change | beside | ratio |\n|---|---|---|---|---|---|---|"
    for row in new["rows"]:
        now, was = row["medians"]["edgerun"], before.get((row["work"], row["threads"]))
        gain = 0.0 if not was else (was / now if row["unit"] in SMALLER_IS_BETTER else now / was) - 1
        change = f"{was:.1f} | {gain:+.0%}" if was else "– | –"
        beside = ", ".join(f"{name} {value:.1f}" for name, value in row["medians"].items() if name != "edgerun") or "–"
        ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"].values()) or "–"
        yield f"| {row['work']} | {row['threads']} | {now:.1f} {row['unit']} | {change} | {beside} | {ratios} |"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("use: compare.py NEW.json OLD.json")
    new, old = (Path(name) for name in sys.argv[1:])
    print("\n".join(lines(json.loads(new.read_text()), json.loads(old.read_text()) if old.exists() else None)))


if __name__ == "__main__":
    main()

"""One iteration of a hot loop as a straight line of instructions, taken from the assembly of an object.

The loop over groups of columns has the loop over a group's columns inside, whose number of passes is known. The trace
is the shortest way round the outer loop, the inner one repeated, a called function written out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

DOTS = ("sdot", "usdot", "smull", "smull2", "smmla", "usmmla")
"""What multiplies weights by activations."""


class Block(NamedTuple):
    """Instructions without a jump but at the end; ``after``: the labels that may follow."""

    label: str
    instructions: list[str]
    after: list[str]

    @property
    def is_loop(self) -> bool:
        return self.label in self.after

    def called(self) -> str:
        return next((line.split()[1] for line in self.instructions if line.startswith("bl\t")), "")


Function = dict[str, Block]


def mnemonic(instruction: str) -> str:
    return instruction.split("\t", 1)[0]


def dots(instructions: list[str]) -> int:
    return sum(mnemonic(line) in DOTS for line in instructions)


def functions(assembly: str) -> dict[str, Function]:
    """Blocks by label, of every function."""
    found: dict[str, Function] = {}
    for name, body in _bodies(assembly):
        blocks: list[tuple[str, list[str]]] = [(name, [])]
        for line in body:
            if label := re.match(r"(\.LBB\w+):", line):
                blocks.append((label[1], []))
            elif re.match(r"\t[a-z]", line):
                blocks[-1][1].append(line.split("//")[0].strip())
                if _jump(blocks[-1][1][-1]):  # what follows is reached by falling through only
                    blocks.append((f"{blocks[-1][0]}+", []))
        following = [label for label, _ in blocks[1:]] + [""]
        found[name] = {
            label: Block(label, lines, _after(lines, fall))
            for (label, lines), fall in zip(blocks, following, strict=True)
        }
    return found


def _bodies(assembly: str) -> Iterator[tuple[str, list[str]]]:
    name, body = "", list[str]()
    for line in assembly.splitlines():
        if start := re.match(r"([\w$.]+):", line):
            if not start[1].startswith(".L"):
                name, body = start[1], []
                continue
            if start[1].startswith(".Lfunc_end"):
                yield name, body
        body.append(line)


def _jump(instruction: str) -> str:
    """Where an instruction jumps to within its function, if it does."""
    found = re.match(r"(?:b|b\.\w+|cbn?z|tbn?z)\t.*?(\.LBB\w+)$", instruction)
    return found[1] if found else ""


def _after(lines: list[str], fall: str) -> list[str]:
    last = lines[-1] if lines else ""
    if last.startswith("ret"):
        return []
    jump = _jump(last)
    if last.startswith("b\t"):
        return [jump]
    return [label for label in (jump, fall) if label]


def way(function: Function, start: str, goal: str) -> list[str] | None:
    """The labels from after ``start`` to before ``goal``, on the way with the fewest instructions; "": to the end."""
    queue = deque([(0, start, list[str]())])
    best: dict[str, int] = {}
    found: list[str] | None = None
    least = 1 << 30
    while queue:
        cost, at, path = queue.popleft()
        for label in function[at].after or [""]:
            if label == goal and at == start and function[start].is_loop:
                continue  # once more through a loop is no way round it
            if label == goal:
                if cost < least:
                    found, least = path, cost
            elif label and label != at and label in function:
                more = cost + len(function[label].instructions)
                if more < best.get(label, least):
                    best[label] = more
                    queue.append((more, label, [*path, label]))
    return found


def traces(assembly: str, least: int = 8) -> Iterator[list[str]]:
    """One iteration of every loop over groups that has a loop of ``least`` dot instructions, or that is one."""
    whole = functions(assembly)
    for name, function in whole.items():
        for block in function.values():
            if dots(block.instructions) < least:
                continue
            path = way(function, block.label, block.label)
            if not block.is_loop and path is not None and not block.called():
                yield _joined(function, path, block, 1)
            if block.is_loop:
                yield block.instructions
                for passes in (2, 4, 8):
                    if path is not None:
                        yield _joined(function, path, block, passes)
                    elif (rest := way(function, block.label, "")) is not None:
                        before = way(function, name, block.label) or []
                        inside = [name, *before] + [block.label] * passes + rest
                        yield from _callers(whole, name, [i for label in inside for i in function[label].instructions])


def _joined(function: Function, path: list[str], block: Block, passes: int) -> list[str]:
    return block.instructions * passes + [i for label in path for i in function[label].instructions]


def _callers(whole: dict[str, Function], name: str, inside: list[str]) -> Iterator[list[str]]:
    """The loops that call a function, with its instructions in place of the call."""
    for function in whole.values():
        for block in function.values():
            if block.called() == name and (path := way(function, block.label, block.label)) is not None:
                at = next(i for i, line in enumerate(block.instructions) if line.startswith("bl\t"))
                around = [i for label in path for i in function[label].instructions]
                yield block.instructions[:at] + inside + block.instructions[at + 1 :] + around

"""The index of prefixes: which pages hold the keys and values of texts that were computed before.

A tree: a node is a page, found by the tokens that it holds behind the pages above it. Below a root all sequences have
made their keys and values in the same way: with one variant, one attention policy, one setting of sparsity. Nodes that
no sequence holds are forgotten, least recently used first, where their memory is wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence

from edgerun.engine.pages import Page, PagePool
from edgerun_kernels.record import PAGE


class _Node:
    __slots__ = ("children", "key", "page", "parent", "tokens", "used")

    def __init__(self, parent: _Node | None, tokens: tuple[int, ...], page: Page | None) -> None:
        self.parent, self.tokens, self.page = parent, tokens, page
        self.children: dict[int, list[_Node]] = {}  # by their first token
        self.used = 0
        self.key: Hashable = None

    def all_children(self) -> Iterator[_Node]:
        return itertools.chain.from_iterable(self.children.values())


class Prefixes:
    """The index over a pool's pages. ``retained``: bytes that pages which no sequence holds may take."""

    def __init__(self, pool: PagePool, retained: int) -> None:
        self._pool, self.retained = pool, retained
        self._roots: dict[Hashable, _Node] = {}
        self._clock = itertools.count(1)
        self._nodes: set[_Node] = set()
        pool.evict, pool.trim = self.evict, self.trim

    def find(self, key: Hashable, tokens: Sequence[int]) -> tuple[list[Page], Page | None, int]:
        """The longest known prefix of ``tokens`` below a root: whole pages, held for the caller; a page that begins
        like what follows them, not held, and how many tokens of it."""
        with self._pool.lock:
            pages: list[Page] = []
            node, start = self._roots.get(key), 0
            while node is not None:
                best, shared = None, 0
                for child in node.children.get(tokens[start], ()) if start < len(tokens) else ():
                    n = shared_length(child.tokens, tokens, start)
                    if n > shared:
                        best, shared = child, n
                if best is None:
                    break
                best.used = next(self._clock)
                assert best.page is not None
                if shared < PAGE:
                    return pages, best.page, shared
                pages.append(self._pool.hold(best.page))
                node, start = best, start + PAGE
            return pages, None, 0

    def keep(self, key: Hashable, tokens: Sequence[int], pages: Sequence[Page | None]) -> None:
        """Notes that ``pages`` hold the keys and values of ``tokens``; of the last page, those that it has. What is
        known already stays as it is."""
        with self._pool.lock:
            node = self._roots.setdefault(key, _Node(None, (), None))
            for start, page in zip(range(0, len(tokens), PAGE), pages, strict=False):
                if page is None:
                    return
                part = tuple(tokens[start : start + PAGE])
                node = self._child(node, part, page)
                node.used = next(self._clock)
                if len(part) < PAGE:
                    break

    def _child(self, node: _Node, part: tuple[int, ...], page: Page) -> _Node:
        siblings = node.children.setdefault(part[0], [])
        for child in siblings:
            if child.page is page and child.tokens == part[: len(child.tokens)]:  # it has grown
                child.tokens = part
                self._pool.promise(page, len(part))
                return child
            if child.tokens[: len(part)] == part:
                return child
        made = _Node(node, part, page)
        siblings.append(made)
        self._nodes.add(made)
        self._pool.promise(page, len(part))
        return made

    def trim(self) -> None:
        """Forgets pages until those that no sequence holds are within what may be retained."""
        with self._pool.lock:
            idle = sum(node.page is not None and node.page.sequences == 0 for node in self._nodes)
            for _ in range(idle - self.retained // self._pool.page_bytes):
                if not self.evict():
                    break

    def clear(self) -> None:
        """Forgets everything."""
        with self._pool.lock:
            for node in self._nodes:
                assert node.page is not None
                self._pool.promise(node.page, 0)
            self._nodes.clear()
            self._roots.clear()

    def evict(self) -> bool:
        """Forgets the node used least recently of those without children whose page no sequence holds; False where
        there is none."""
        with self._pool.lock:
            idle = [node for node in self._nodes if not node.children and _is_idle(node)]
            if not idle:
                return False
            self._forget(min(idle, key=lambda node: node.used))
            return True

    def _forget(self, node: _Node) -> None:
        parent = node.parent
        assert parent is not None and node.page is not None
        siblings = parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del parent.children[node.tokens[0]]
        self._nodes.remove(node)
        self._pool.promise(node.page, 0)


def _is_idle(node: _Node) -> bool:
    return node.page is not None and node.page.sequences == 0


def shared_length(mine: Sequence[int], others: Sequence[int], start: int = 0) -> int:
    """How many tokens ``mine`` shares, from its beginning on, with ``others`` from ``start`` on."""
    n = 0
    for token, other in zip(mine, itertools.islice(others, start, None), strict=False):
        if token != other:
            break
        n += 1
    return n

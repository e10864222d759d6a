"""Which graph node a tensor stands for, kept right through views and in-place writes.

A tensor is known by its storage and layout, not by its Python object: the dispatcher may hand out another object for
the same view. Storages are kept alive for as long as the table, so that no address is used twice.
"""

from __future__ import annotations

from torch import Tensor

from stripefold.modules.tensors import TensorKey, count_of, key_of, overlap


class Values:
    """Tensor -> node index, by storage and layout."""

    def __init__(self) -> None:
        self._nodes: dict[TensorKey, int] = {}
        self._by_storage: dict[int, list[TensorKey]] = {}
        self._alive: list[Tensor] = []

    def set(self, tensor: Tensor, node: int) -> None:
        """Let ``tensor`` stand for ``node`` from now on."""
        key = key_of(tensor)
        if key not in self._nodes:
            self._by_storage.setdefault(key[0], []).append(key)
            self._alive.append(tensor)
        self._nodes[key] = node

    def find(self, tensor: Tensor) -> int | None:
        """The node of ``tensor``; of the first known tensor on its storage where this very view is new."""
        key = key_of(tensor)
        if key in self._nodes:
            return self._nodes[key]
        siblings = self._by_storage.get(key[0])
        return self._nodes[siblings[0]] if siblings else None

    def exactly(self, tensor: Tensor) -> int | None:
        """The node of this very view, or None."""
        return self._nodes.get(key_of(tensor))

    def overlapping(self, tensor: Tensor) -> list[tuple[TensorKey, int, bool]]:
        """The other known views that a write to ``tensor`` changes: key, node, and whether nothing old is left."""
        own = key_of(tensor)
        changed = []
        for key in self._by_storage.get(own[0], ()):
            if key != own and overlap(own, key):
                changed.append((key, self._nodes[key], count_of(own) >= count_of(key)))
        return changed

    def replace(self, key: TensorKey, node: int) -> None:
        """Give a view, known by its key, a new version."""
        self._nodes[key] = node

"""Which graph node a tensor stands for, kept right through views and in-place writes.

A tensor is known by its storage and layout, not by its Python object: the dispatcher may hand out another object for
the same view. Storages are held weakly: no address is used twice, and what is alive in the end somebody else has kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from stripefold.modules.tensors import TensorKey, count_of, key_of, overlap, storage_of


class WeakStorages:
    """The storages of some tensors, by their addresses, none of which is used again."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef | Tensor] = {}

    def add(self, tensor: Tensor) -> None:
        """Remember the storage of a tensor; what has none is kept itself."""
        address = storage_of(tensor)
        if address not in self._known:
            plain = address != id(tensor)
            self._known[address] = StorageWeakRef(tensor.untyped_storage()) if plain else tensor  # type: ignore[no-untyped-call]

    def alive(self) -> Iterator[int]:
        """The addresses of those that somebody holds."""
        for address, each in self._known.items():
            if isinstance(each, StorageWeakRef) and not each.expired():  # type: ignore[no-untyped-call]
                yield address


class Values:
    """Tensor -> node index, by storage and layout."""

    def __init__(self) -> None:
        self._nodes: dict[TensorKey, int] = {}
        self._by_storage: dict[int, list[TensorKey]] = {}
        self._storages = WeakStorages()

    def set(self, tensor: Tensor, node: int) -> None:
        """Let ``tensor`` stand for ``node`` from now on."""
        key = key_of(tensor)
        if key not in self._nodes:
            self._by_storage.setdefault(key[0], []).append(key)
            self._storages.add(tensor)
        self._nodes[key] = node

    def find(self, tensor: Tensor) -> int | None:
        """The node of ``tensor``; of the first known tensor on its storage where this very view is new."""
        key = key_of(tensor)
        if key in self._nodes:
            return self._nodes[key]
        siblings = self._by_storage.get(key[0])
        return self._nodes[siblings[0]] if siblings else None

    def kept(self) -> Iterator[int]:
        """The nodes of all views whose storages somebody still holds."""
        for address in self._storages.alive():
            yield from (self._nodes[key] for key in self._by_storage[address])

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

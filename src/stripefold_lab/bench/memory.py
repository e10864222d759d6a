"""The most bytes that were alive at once.

The resident size of a CPU process says more about its allocator than about a model. So on the CPU every storage that
an operator hands out is followed until it dies: a deterministic count of parameters, activations, saved tensors,
gradients and optimiser state. Scratch memory inside one operator is not seen. On CUDA the allocator keeps the count.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(run: Callable[[], object], *, held: Sequence[Tensor] = (), device: str = "cpu") -> int:
    """Run once and return the largest number of bytes alive at the same time.

    Args:
        run: What to measure.
        held: Tensors alive before `run` that count too, each storage once (CPU only: CUDA counts all).
        device: Where `run` puts its tensors.

    Returns:
        Bytes.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    meter = LiveStorages()
    for tensor in held:
        meter.follow(tensor)
    with meter:
        run()
    return meter.peak


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of every storage seen, until it is freed.

    Attributes:
        live: Bytes alive now.
        peak: The most bytes alive so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        # The storage's Python object lives as long as the storage itself, so its weak reference tells the end.
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def follow(self, tensor: Tensor) -> None:
        """Count the storage of `tensor` once, from now until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def forget(_: object) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and follow what it hands out."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return result

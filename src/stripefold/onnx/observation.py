"""``observe``: run an ONNX network over data and record what its channel attention gives for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stripefold.errors import ObserveError
from stripefold.onnx.data import FeedBatches, Input
from stripefold.onnx.gates import Gate, Other, find_gates
from stripefold.onnx.read import ModelSource, OnnxNetwork, read_network
from stripefold.onnx.shapes import run_shapes
from stripefold.onnx.statistics import GateStatistics
from stripefold.onnx.switched import Watched
from stripefold.onnx.values import data_inputs
from stripefold.progress import ImageProgress

if TYPE_CHECKING:
    from stripefold.stripe.report import StripeReport


def observe(
    source: ModelSource,
    data: Any,
    *,
    max_images: int | None = None,
    keep: int = 256,
    by_class: bool = False,
    threads: int = 0,
    progress: ImageProgress | None = None,
) -> StripeReport:
    """Stripe Observation of an ONNX network: the statistics of every dynamic channel attention over data.

    Args:
        source: a file, its bytes, or a model in memory.
        data: a folder of images or ``Images``, an ``.npz`` file, arrays, batches of them, or a function that gives
            them.
        max_images: stop after that many.
        keep: how many samples' vectors are kept for pictures, the first ones.
        by_class: also the mean of every class; needs labels.
        threads: of onnxruntime; 0 leaves it to it.
        progress: called after every batch with the number of samples seen.

    Returns:
        The same report as of a PyTorch model; without a layer for a network that has no channel attention.

    Raises:
        OnnxError: the file is damaged, unsafe, of a kind that is refused, or onnxruntime cannot run it.
        DataError: the data are of no known form, or no input of the network.
        ObserveError: a bad option, no labels for ``by_class``, values that are not finite.
    """
    for name, value in (("keep", keep), ("max_images", max_images)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ObserveError(f"{name}={value!r}: expected a number of images, 0 or more")
    network = read_network(source)
    batches = FeedBatches(data, inputs_of(network), limit=max_images, again=False)
    return _report(network, watch(network, batches, keep=keep, by_class=by_class, threads=threads, progress=progress))


@dataclass(frozen=True)
class Observation:
    """What was seen of a network.

    Attributes:
        gates: gate -> its statistics, in the order of computation.
        others: products that are no gates.
        images: samples seen.
    """

    gates: dict[str, GateStatistics]
    others: list[Other]
    images: int

    @property
    def found(self) -> list[Gate]:
        """The gates."""
        return [each.gate for each in self.gates.values()]


def inputs_of(network: OnnxNetwork) -> list[Input]:
    """What the caller must give a network."""
    return [Input.of(value) for value in data_inputs(network.model())]


def watch(
    network: OnnxNetwork,
    batches: FeedBatches,
    *,
    keep: int = 0,
    by_class: bool = False,
    threads: int = 0,
    progress: ImageProgress | None = None,
) -> Observation:
    """Find the gates on the first batch, and add up what all batches show of them."""
    watched: Watched | None = None
    statistics: dict[str, GateStatistics] = {}
    others: list[Other] = []
    images = 0
    for batch in batches:
        if by_class and batch.labels is None:
            raise ObserveError(f"by_class needs labels, and batch {batch.number} has none: give (arrays, labels) pairs")
        if watched is None:
            gates, others = find_gates(network.model(), run_shapes(network, batch.feed))
            statistics = {gate.name: GateStatistics(gate, keep=keep) for gate in gates}
            watched = Watched(network, gates, threads=threads)
        for gate, seen in watched.run(batch.feed):
            statistics[gate.name].add(seen, batch.labels if by_class else None)
        images += batch.size
        if progress is not None:
            progress(images)
    return Observation(statistics, others, images)


def _report(network: OnnxNetwork, observation: Observation) -> StripeReport:
    import torch

    from stripefold import __version__
    from stripefold.stripe.discover import NotAGate
    from stripefold.stripe.layer import LayerStripes
    from stripefold.stripe.report import StripeReport

    layers = []
    for name, seen in observation.gates.items():
        classes = seen.classes
        layers.append(
            LayerStripes(
                name=name,
                kind=seen.gate.kind,
                depth=seen.gate.depth,
                channels=seen.gate.channels,
                images=seen.images,
                mean=torch.from_numpy(seen.mean.copy()),
                m2=torch.from_numpy(seen.m2.copy()),
                sample=torch.from_numpy(np.ascontiguousarray(seen.sample)),
                keep=seen.keep,
                dtype=seen.dtype,
                class_means=None if classes is None else torch.from_numpy(classes[0]),
                class_counts=None if classes is None else torch.from_numpy(classes[1]),
            )
        )
    return StripeReport(
        layers=tuple(layers),
        others=tuple(
            NotAGate(name=other.name, shape=other.shape, factor=other.factor, why=other.why)
            for other in observation.others
        ),
        images=observation.images,
        model=network.name,
        versions={"stripefold": __version__, **runtime_versions()},
    )


def runtime_versions() -> dict[str, str]:
    """Of the libraries that run and change the graph."""
    import onnx
    import onnx_ir
    import onnxruntime

    return {"onnx": onnx.__version__, "onnx-ir": onnx_ir.__version__, "onnxruntime": onnxruntime.__version__}

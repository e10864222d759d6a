"""Add up what was recorded, batch by batch, in memory that does not grow with the number of images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from stripefold.errors import ObserveError
from stripefold.stripe.batches import Batch
from stripefold.stripe.discover import Discovery
from stripefold.stripe.layer import LayerStripes
from stripefold.stripe.moments import Moments
from stripefold.stripe.recording import Recording

Group = tuple[int, ...]
_MOST_CLASSES = 2**20
_MOST_SUMS = 2**29  # classes times channels, in float64: 4 GiB, for a label that is no class


class Accumulator:
    """Moments, class sums, samples and descriptor means of every gate.

    Gates that ran in one batch with the same number of rows are treated as one wide matrix: a few operations for all
    of them together, whatever their number.

    Args:
        discovery: The gates.
        keep: Bound of the sample per gate.
        by_class: Whether the means of each class are wanted.
    """

    def __init__(self, discovery: Discovery, *, keep: int, by_class: bool) -> None:
        self._discovery = discovery
        self._keep, self._by_class = keep, by_class
        self._moments: dict[Group, Moments] = {}
        self._class_sums: dict[Group, Tensor] = {}
        self._class_counts: dict[Group, Tensor] = {}
        self._descriptors: dict[int, Tensor] = {}
        self._described: dict[int, int] = {}
        self._samples: dict[int, list[Tensor]] = {}
        self._sampled: dict[int, int] = {}
        self._dtypes: dict[int, str] = {}
        self.unclear: set[int] = set()

    def add(self, recording: Recording, batch: Batch) -> Tensor:
        """Add one batch.

        Returns:
            Whether all values so far are finite, a boolean on the device, so that nobody has to wait for it here.
        """
        self.unclear.update(recording.differing())
        groups: dict[tuple[int, torch.device], dict[int, Tensor]] = {}
        for index, scales in sorted(recording.scales().items()):
            groups.setdefault((len(scales), scales.device), {})[index] = scales
            self._dtypes[index] = str(scales.dtype).removeprefix("torch.")
        finite = [self._add_matrix(tuple(group), _matrix(group.values()), batch) for group in groups.values()]
        described: dict[tuple[int, torch.device], dict[int, Tensor]] = {}
        for index, descriptors in sorted(recording.descriptors().items()):
            described.setdefault((len(descriptors), descriptors.device), {})[index] = descriptors
        for group in described.values():
            self._add_descriptors(group)
        return torch.stack([one.to(finite[0].device) for one in finite]).all() if finite else torch.tensor(True)

    def _add_descriptors(self, group: dict[int, Tensor]) -> None:
        matrix = _matrix(group.values())
        for total, (index, descriptors) in zip(
            torch.split(matrix.sum(0), [part.shape[1] for part in group.values()]), group.items(), strict=True
        ):
            before = self._descriptors.get(index)
            self._descriptors[index] = total if before is None else before + total
            self._described[index] = self._described.get(index, 0) + len(descriptors)

    def _add_matrix(self, group: Group, matrix: Tensor, batch: Batch) -> Tensor:
        moments = Moments.of(matrix)
        if group in self._moments:
            moments = self._moments[group].merge(moments)
        self._moments[group] = moments
        self._add_samples(group, matrix)
        if self._by_class and batch.labels is not None and len(matrix) % batch.size == 0:
            self._add_classes(group, matrix, batch.labels.repeat_interleave(len(matrix) // batch.size))
        return moments.mean.isfinite().all()

    def _add_samples(self, group: Group, matrix: Tensor) -> None:
        wanted = max(self._keep - self._sampled.get(i, 0) for i in group)
        if wanted <= 0:
            return
        rows = matrix[:wanted].to("cpu", torch.float32)
        for index, part in zip(group, torch.split(rows, [self._width(i) for i in group], dim=1), strict=True):
            have = self._sampled.get(index, 0)
            part = part[: self._keep - have]
            if len(part):
                self._samples.setdefault(index, []).append(part.clone())
                self._sampled[index] = have + len(part)

    def _add_classes(self, group: Group, matrix: Tensor, labels: Tensor) -> None:
        classes = int(labels.max()) + 1
        if classes > _MOST_CLASSES or classes * matrix.shape[1] > _MOST_SUMS:
            raise ObserveError(
                f"by_class keeps a sum for every class and channel, and there is the label {classes - 1}, with "
                f"{matrix.shape[1]} channels: number the classes from 0 on, without gaps"
            )
        sums, counts = self._class_sums.get(group), self._class_counts.get(group)
        if sums is None or counts is None:
            sums, counts = matrix.new_zeros(classes, matrix.shape[1]), torch.zeros(classes, dtype=torch.int64)
        if classes > len(sums):
            sums = torch.cat([sums, sums.new_zeros(classes - len(sums), sums.shape[1])])
            counts = torch.cat([counts, counts.new_zeros(classes - len(counts))])
        self._class_sums[group] = sums.index_add_(0, labels.to(matrix.device), matrix)
        self._class_counts[group] = counts + torch.bincount(labels, minlength=len(counts))

    def _width(self, index: int) -> int:
        return self._discovery.gates[index].channels

    def layers(self) -> list[LayerStripes]:
        """One entry per gate that was recorded, in the order of computation."""
        parts: dict[int, list[LayerStripes]] = {}
        for group, moments in self._moments.items():
            widths = [self._width(i) for i in group]
            means, m2s = torch.split(moments.mean.cpu(), widths), torch.split(moments.m2.cpu(), widths)
            for position, index in enumerate(group):
                classes = self._classes_of(group, sum(widths[:position]), widths[position])
                part = self._layer(index, Moments(moments.count, means[position], m2s[position]), classes)
                parts.setdefault(index, []).append(part)
        return [self._joined(index, parts[index]) for index in sorted(parts) if index not in self.unclear]

    def _classes_of(self, group: Group, start: int, width: int) -> tuple[Tensor | None, Tensor | None]:
        if group not in self._class_sums:
            return None, None
        counts = self._class_counts[group]
        sums = self._class_sums[group][:, start : start + width].cpu()
        return sums / counts.clamp(min=1)[:, None], counts

    def _layer(self, index: int, moments: Moments, classes: tuple[Tensor | None, Tensor | None]) -> LayerStripes:
        gate = self._discovery.gates[index]
        nodes = len(self._discovery.graph_of(gate).nodes)
        return LayerStripes(
            name=gate.name,
            kind=gate.kind,
            depth=gate.product / max(1, nodes - 1),
            channels=gate.channels,
            images=moments.count,
            mean=moments.mean.clone(),
            m2=moments.m2.clone(),
            sample=torch.zeros(0, gate.channels),
            keep=self._keep,
            split=gate.split,
            dtype=self._dtypes[index],
            class_means=classes[0],
            class_counts=classes[1],
        )

    def _joined(self, index: int, parts: list[LayerStripes]) -> LayerStripes:
        """The parts of one gate as one; its sample was kept in the order of the images."""
        layer = parts[0]
        for part in parts[1:]:
            layer = layer.merge(part)
        sample = torch.cat(self._samples[index]) if index in self._samples else layer.sample
        described = self._described.get(index, 0)
        mean = self._descriptors[index].cpu() / described if described == layer.images else None
        return replace(layer, sample=sample, descriptor_mean=mean)


def _matrix(parts: Iterable[Tensor]) -> Tensor:
    """(n, C1), (n, C2) ... side by side, in float64, on the CPU where the device has no float64."""
    matrix = torch.cat(list(parts), dim=1)
    return (matrix.cpu() if matrix.device.type == "mps" else matrix).to(torch.float64)

"""``bake``: take the dynamic channel attention out of an ONNX network, at a known cost."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

import onnx

from stripefold.errors import BakeError
from stripefold.onnx.data import FeedBatches
from stripefold.onnx.fold import Folded, fold_constants
from stripefold.onnx.judge import OnnxGateDecisions, OnnxGateJudge
from stripefold.onnx.metric import OnnxMetric
from stripefold.onnx.observation import Observation, inputs_of, runtime_versions, watch
from stripefold.onnx.options import GateNames, Options
from stripefold.onnx.read import ModelSource, OnnxNetwork, read_network
from stripefold.onnx.report import OnnxBakeReport
from stripefold.onnx.results import operations, site_results
from stripefold.onnx.session import Session
from stripefold.onnx.shapes import other_shapes, run_shapes
from stripefold.onnx.speed import side_by_side
from stripefold.onnx.statistics import OnnxConstantKind
from stripefold.onnx.switched import GateConstants, Switched
from stripefold.onnx.write import Comparison, compare, to_proto, write_model
from stripefold.progress import StepProgress

_COMPARED = 2  # batches on which the baked network is compared


def bake(
    source: ModelSource,
    data: Any,
    *,
    output: str | os.PathLike[str] | None = None,
    constants: OnnxConstantKind = "least-squares",
    where: GateNames | None = None,
    metric: OnnxMetric | None = None,
    max_drop: float | None = None,
    validation: Any = None,
    price: bool = True,
    speed: bool = False,
    max_images: int | None = None,
    threads: int = 0,
    progress: StepProgress | None = None,
) -> tuple[onnx.ModelProto, OnnxBakeReport]:
    """Replace the dynamic channel attention of an ONNX network by constants, and fold those into its layers.

    With ``max_drop``, a metric decides: each gate is made constant alone, then they are added one by one, the cheapest
    first, as long as the metric stays within the budget; the others keep their dynamic attention. The result is
    compared with the network whose gates are held at the same constants, on real inputs, before it is returned.

    Args:
        source: a file, its bytes, or a model in memory; it stays as it is.
        data: what the constants come from: a folder of images or ``Images``, an ``.npz`` file, arrays, (arrays, labels)
            pairs, mappings of input names to arrays, batches of these, or a function that gives them. Read more than
            once, so no generator.
        output: the file to write, whole or not at all.
        constants: "least-squares", also called "energy": in each channel the least squared error of what is scaled; or
            "mean" of v over the images. In five text networks the first was never worse than the second.
        where: only the gates of these names: a glob, a list of globs, or a predicate of the name.
        metric: a function of the network, which it may call with arrays by name or with the one array, and which
            returns a list of outputs; higher is better. None is the top-1 accuracy in percent where there are labels,
            and else the agreement with the outputs of the original, which are stored.
        max_drop: how much the metric may fall, in its own units; None bakes every gate.
        validation: other data for the metric.
        price: measure each gate alone even without a budget: one pass over the data for each.
        speed: also measure a run before and after.
        max_images: use that many samples of ``data`` and of ``validation`` at most.
        threads: of onnxruntime; 0 leaves it to it.
        progress: called with (what is going on, steps done, of how many).

    Returns:
        The baked model, and what was done to it.

    Raises:
        OnnxError: the file is damaged, unsafe, of a kind that is refused, or onnxruntime cannot run it.
        DataError: the data are of no known form, or no input of the network.
        BakeError: no channel attention, a bad option, a metric that is not finite, a file that cannot be written.
        ObserveError: a gate gives values that are not finite, or changes its shape.
        VerifyError: the baked network does not compute what the constant gates computed.
    """
    options = Options(
        output=output, constants=constants, where=where, metric=metric, max_drop=max_drop, validation=validation,
        price=price, speed=speed, max_images=max_images, threads=threads, progress=progress,
    )  # fmt: skip
    return _OnnxBakeJob(read_network(source), data, options).run()


class _OnnxBakeJob:
    def __init__(self, network: OnnxNetwork, data: Any, options: Options) -> None:
        self._network, self._options = network, options
        inputs = inputs_of(network)
        self._names = [each.name for each in inputs]
        self._data = FeedBatches(data, inputs, limit=options.max_images)
        self._validation = self._data
        if options.validation is not None:
            self._validation = FeedBatches(options.validation, inputs, limit=options.max_images, name="validation")

    def run(self) -> tuple[onnx.ModelProto, OnnxBakeReport]:
        """Observe, judge, fold, compare, write."""
        options, network = self._options, self._network
        observation = watch(network, self._data, threads=options.threads, progress=lambda n: options.tell("images", n))
        if not observation.gates:
            raise BakeError(f"{network.name} has no channel attention that depends on the data: nothing can be baked")
        gates = options.chosen(observation.found, lambda gate: options.where(gate.name))
        constants = {gate.name: observation.gates[gate.name].constant(options.constants) for gate in gates}
        dtypes = {name: seen.dtype for name, seen in observation.gates.items()}
        switched = Switched(network, gates, dtypes, threads=options.threads)
        priors = {name: seen.prior for name, seen in observation.gates.items()}
        judge = OnnxGateJudge(switched, constants, self._names, self._validation, options)
        verdict = judge.decide(priors)
        baked = [gate for gate in gates if gate.name in verdict.chosen]
        if not baked:
            notes = ("no gate fits into the budget: nothing was baked, and nothing was written",)
            return network.proto, self._report(observation, verdict, network.proto, {}, notes=notes)
        held = {gate.name: constants[gate.name] for gate in baked}
        first = self._data.first().feed
        shapes = [run_shapes(network, first), *other_shapes(network, first, inputs_of(network))]
        model, folded, found = fold_constants(network, baked, held, dtypes, shapes)
        proto = to_proto(model, network)
        session = Session(proto, network.name, threads=options.threads)
        plain = Switched(network, gates, dtypes, threads=options.threads, optimised=False)
        comparison = self._compared(session, switched, plain, held)
        after = judge.measure(session.run, "of the baked network")
        report = self._report(
            observation, verdict, proto, folded, notes=tuple(found), comparison=comparison, after=after
        )
        if options.output is not None:
            write_model(proto, options.output, lambda file: self._compared(file, switched, plain, held))
        return proto, report

    def _compared(self, session: Session, switched: Switched, plain: Switched, held: GateConstants) -> Comparison:
        """Compare with the switched network; operation by operation, and with nudged constants, it shows rounding."""
        feeds = [batch.feed for batch in itertools.islice(self._data, _COMPARED)]
        nudged = switched.nudged(held)
        nearly = [lambda feed: plain.run(feed, held), lambda feed: switched.run(feed, nudged)]
        return compare(session.run, lambda feed: switched.run(feed, held), nearly, feeds, session.outputs)

    def _report(
        self,
        observation: Observation,
        verdict: OnnxGateDecisions,
        proto: onnx.ModelProto,
        folded: Mapping[str, Folded],
        *,
        notes: tuple[str, ...],
        comparison: Comparison | None = None,
        after: float | None = None,
    ) -> OnnxBakeReport:
        from stripefold import __version__

        options, network = self._options, self._network
        speed = None
        if options.speed and folded:
            batch = self._data.first()
            speed = side_by_side(network.proto, proto, batch.feed, batch.size, threads=options.threads)
        return OnnxBakeReport(
            model=network.name,
            sites=site_results(observation, verdict, folded, options.max_drop),
            constants=options.constants,
            to="plain",
            images=observation.images,
            metric=verdict.metric,
            before=verdict.before,
            constant=verdict.constant,
            after=after,
            max_drop=options.max_drop,
            speed=speed,
            notes=notes,
            versions={"stripefold": __version__, **runtime_versions()},
            bytes_before=network.bytes,
            bytes_after=proto.ByteSize() if folded else network.bytes,
            operations_before=operations(network.proto),
            operations_after=operations(proto),
            error=0.0 if comparison is None else comparison.error,
            tolerance=0.0 if comparison is None else comparison.tolerance,
            rms_error=0.0 if comparison is None else comparison.rms_error,
            path="" if options.output is None or not folded else os.fspath(options.output),
        )

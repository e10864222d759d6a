"""What int8 makes of a folded network: accuracy and weight ranges of ResNet-20 + ASR(SE) on CIFAR-10 images.

    python -m benchmarks.int8_cifar --data FOLDER_OR_TAR --images 10000 --epochs 6

It trains on a slice of the images, folds, fuses, and judges every form on the same test images: with float32 weights,
with weights rounded to int8 by one scale per tensor and by one per output channel (activations stay float32), and
as the int8 file that `stripefold.export` writes. Accuracy and ranges only: nothing here is timed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import stripefold as sf
from benchmarks.bake_cifar import Augmented
from benchmarks.cifar_data import Cifar, Labelled, load_cifar
from benchmarks.common import RESULTS
from benchmarks.stripes_cifar import BATCH, DECAY, MOMENTUM, RATE, accuracy, describe_device
from stripefold.export import compare_ranges, export_model, quantize_int8
from stripefold.export.ranges import LEVELS, RangeTable
from stripefold_lab import create_model

PAGE, FILE = RESULTS / "cifar" / "INT8.md", RESULTS / "cifar" / "int8.json"
CALIBRATION, JUDGED = 512, 5000
KEPT, FUSED = "folded, BatchNorm kept", "folded and fused"
WIDTHS = ("float32", "one scale per tensor", "one scale per channel", "int8 file")


def train(model: nn.Module, data: Labelled, epochs: int, seed: int) -> float:
    """Train with the recipe of `stripes_cifar`, the rate falling along a cosine; returns the last epoch's mean loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    batches, steps, done, losses = Augmented(data, seed), math.ceil(len(data) / BATCH), 0, [0.0]
    model.train()
    for epoch in range(epochs):
        losses = []
        for images, labels in batches:
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * done / (epochs * steps)))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            done += 1
        print(f"epoch {epoch + 1}/{epochs}: loss {sum(losses) / len(losses):.3f}", flush=True)
    model.eval()
    return sum(losses) / len(losses)


@torch.no_grad()
def rounded(model: nn.Module, *, per_channel: bool) -> nn.Module:
    """A copy whose convolutions and linear layers have weights of 8 bits: by one scale, or by one per channel."""
    copied = copy.deepcopy(model)
    for layer in copied.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            rows: Tensor = layer.weight.flatten(1).abs().amax(1)
            step = (rows if per_channel else rows.amax().expand_as(rows)) / LEVELS
            step = step.view(-1, *[1] * (layer.weight.dim() - 1))
            layer.weight.copy_((layer.weight / step).round() * step)
    return copied


def judge(model: nn.Module, data: Cifar, test: Labelled) -> dict[str, Any]:
    """Test accuracies in percent: of the trained model, and of each form in each width."""
    batches = list(test.batches(100))
    calibration = list(data.train.part(_some(len(data.train), CALIBRATION)).batches(64))
    found: dict[str, Any] = {"trained": {"float32": accuracy(model, batches)}}
    for name, fuse in ((KEPT, False), (FUSED, True)):
        plain = sf.fold(model, fuse=fuse)
        found[name] = {
            WIDTHS[0]: accuracy(plain, batches),
            WIDTHS[1]: accuracy(rounded(plain, per_channel=False), batches),
            WIDTHS[2]: accuracy(rounded(plain, per_channel=True), batches),
            **_file(model, fuse, calibration, batches),
        }
    return found


def _file(model: nn.Module, fuse: bool, calibration: list[Any], test: list[Any]) -> dict[str, Any]:
    """The int8 file of a form: accuracy, agreement with the float32 file, and the BatchNorms that are in it."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "net.onnx", Path(folder) / "net.int8.onnx"
        export_model(model, source, fuse=fuse)
        report = quantize_int8(source, output, calibration, test=test)
        norms = sum(node.op_type == "BatchNormalization" for node in onnx.load(output).graph.node)
    assert report.int8_accuracy is not None
    assert report.agreement is not None
    return {WIDTHS[3]: 100 * report.int8_accuracy, "agreement": 100 * report.agreement, "norms in the file": norms}


def _some(count: int, wanted: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(5))[:wanted]


def ranges(model: nn.Module) -> dict[str, Any]:
    """Per layer: spread of the channels and rounding errors, of the plain weights, with BatchNorm in, with gates in."""
    plain, fused = sf.fold(model), sf.fold(model, fuse=True)
    bare = sf.fold(sf.detach(model), fuse=True)
    tables = {"BatchNorm and gates": compare_ranges(plain, fused), "BatchNorm alone": compare_ranges(plain, bare)}
    first = next(iter(tables.values()))
    found = {"as trained": {name: _numbers(before) for name, (before, _) in first.layers.items()}}
    return found | {kind: _after(table) for kind, table in tables.items()}


def _after(table: RangeTable) -> dict[str, Any]:
    return {name: _numbers(after) for name, (_, after) in table.layers.items()}


def _numbers(found: Any) -> dict[str, float]:
    return {key: getattr(found, key) for key in ("spread", "tensor_error", "channel_error")}


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Both files of the result."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE.name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE.name).write_text(page(result), encoding="utf-8")


def page(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# int8 of a folded network on CIFAR-10 images\n",
        "Written by `python -m benchmarks.int8_cifar` beside `int8.json`: {model} + ASR(SE), {epochs} epochs on "
        "{images} images, seed {seed}, torch {torch}, onnxruntime {onnxruntime}. Test accuracy in percent on "
        "{judged} images; the middle columns round weights only.\n".format(**result),
        f"| form | {' | '.join(WIDTHS)} | same answers, file | BatchNorms in the file |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["accuracy"].items():
        cells = [f"{row[width]:.2f}" if width in row else "" for width in (*WIDTHS, "agreement")]
        lines.append(f"| {name} | {' | '.join(cells)} | {row.get('norms in the file', '')} |")
    lines += [
        "\nRanges of the weights, per layer: largest over median channel range (spread), and the relative rounding "
        "error of int8 with one scale per tensor and with one per channel; the median and the worst layer.\n",
        "| weights | spread | worst | error, per tensor | worst | error, per channel | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, layers in result["ranges"].items():
        cells = [show for key in ("spread", "tensor_error", "channel_error") for show in _summary(layers, key)]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _summary(layers: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Median and largest over the layers."""
    values = torch.tensor([row[key] for row in layers.values()], dtype=torch.float64)
    show = "{:.2f}" if key == "spread" else "{:.2%}"
    return show.format(values.median().item()), show.format(values.max().item())


def main(arguments: Sequence[str] | None = None) -> None:
    import onnxruntime

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or tar file: train/CLASS/*, test/CLASS/*")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--images", type=int, default=10_000, help="training images in use")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FILE.parent, help="folder of the result")
    options = parser.parse_args(arguments)
    data = load_cifar(options.data, validation=0, limit=options.images)
    torch.manual_seed(options.seed)
    model = sf.attach_(create_model(options.model, num_classes=10), "se")
    loss = train(model, data.train, options.epochs, options.seed)
    test = data.test.part(_some(len(data.test), JUDGED))
    result = {
        **{key: getattr(options, key) for key in ("model", "images", "epochs", "seed")},
        "device": describe_device(torch.device("cpu")),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "stripefold": sf.__version__,
        "loss": loss,
        "judged": len(test),
        "accuracy": judge(model, data, test),
        "ranges": ranges(model),
    }
    write(result, options.out)
    print(page(result))


if __name__ == "__main__":
    main()

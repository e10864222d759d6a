"""Train a small network with ASR(SE) on the digits, and take it to ONNX and int8 with what each step costs.

Run it: python examples/deploy.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import stripefold as sf
from stripefold.export import compare_ranges, export_model, quantize_int8
from stripefold_lab.bench.runtimes import compare_onnx
from stripefold_lab.models import create_model
from stripefold_lab.training import TrainConfig
from stripefold_lab.training.data import evaluation_loader, load_data, training_loader


def main(epochs: int = 3, limit: int | None = None) -> None:
    torch.manual_seed(0)
    config = TrainConfig(data="digits", limit_train=limit)
    data = load_data(config)
    model = create_model("resnet8", in_channels=data.spec.channels, image_size=data.spec.size)
    sf.attach_(model, "se", example=data.spec.example())
    optimizer = torch.optim.SGD(sf.param_groups(model, weight_decay=1e-4), lr=0.05, momentum=0.9)
    loader = training_loader(data, config)
    for epoch in range(epochs):
        loader.batch_sampler.sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")

    test = list(evaluation_loader(data, config))
    with tempfile.TemporaryDirectory() as folder:
        full, int8 = Path(folder) / "net.onnx", Path(folder) / "net.int8.onnx"
        print(export_model(model, full, inputs=test[0][0][:4]))
        print(quantize_int8(full, int8, (images for images, _ in loader), test=test))
        layer, growth = compare_ranges(model, sf.fold(model, fuse=True)).worst()
        print(f"one int8 scale per tensor would round {layer} {growth:.1f} times as coarsely after folding")
        print(compare_onnx({"float32": full, "int8": int8}, (32, *test[0][0].shape[1:])))


if __name__ == "__main__":
    main()

"""Train a network with dynamic SE on handwritten digits, then take its attention out and see what that costs.

Run it: python examples/bake_trained.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import stripefold as sf
from stripefold_lab import create_model


def load(batch: int = 64) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Training and test batches (N, 1, 8, 8)."""
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float()[:, None] / 16, torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels))
    batches = list(zip(images[order].split(batch), labels[order].split(batch), strict=True))
    return batches[:-7], batches[-7:]


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]], epochs: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()


def main(epochs: int = 4) -> None:
    torch.manual_seed(0)
    training, test = load()
    model = create_model("resnet14", in_channels=1)
    sf.attach_(model, "se", form="dynamic", example=training[0][0])
    train(model, training, epochs)

    # Everything at once, and what each gate costs alone.
    baked, report = sf.bake(model.eval(), training, validation=test, speed=True)
    print(report, end="\n\n")

    # At most half a percent, the constants trained for a moment.
    baked, report = sf.bake(model, training, validation=test, max_drop=0.5, finetune=sf.FineTune(steps=40))
    print(f"within half a percent: {len(report.baked)} of {len(report.sites)} gates, {report.before:.2f} -> ", end="")
    print(f"{report.after:.2f} %")
    print(f"parameters: {count(model)} -> {count(baked)}")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()

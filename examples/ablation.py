"""Is it the attention? The same training with SE gates, with plain learnable vectors, and without any.

`detach` is the control inside a run: the trained backbone without what its gates learned.

Run it: python examples/ablation.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold_lab.models import create_model


def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1797 handwritten digits as (N, 1, 8, 8), in 0 .. 1, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(64):
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main(epochs: int = 5, limit: int = 1797) -> None:
    images, labels = digits()
    images, labels = images[:limit], labels[:limit]
    cut = int(0.8 * len(images))
    for attention in ("se", "scale", None):
        torch.manual_seed(0)
        model = create_model("resnet8", num_classes=10, in_channels=1, image_size=8)
        if attention is not None:
            sf.attach_(model, attention)
        train(model, images[:cut], labels[:cut], epochs)
        folded = sf.fold(model) if attention is not None else model
        line = f"{attention or 'no gates'}: {accuracy(folded, images[cut:], labels[cut:]):.3f}"
        if attention is not None:
            line += f", gates taken away again: {accuracy(sf.detach(model), images[cut:], labels[cut:]):.3f}"
        print(line)


if __name__ == "__main__":
    main()

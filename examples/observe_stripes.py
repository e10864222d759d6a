"""See what the attention of a network does with each image: train SE on digits and watch the stripes appear.

Leaves a folder with a page to open in a browser, pictures and tables. Needs: pip install "stripefold[plot,train]".

Run it: python examples/observe_stripes.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

import stripefold as sf
from stripefold.stripe.trajectory import Trajectory
from stripefold_lab.models import create_model


def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1797 handwritten digits as (N, 1, 8, 8), in 0 .. 1, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)


def main(folder: str = "stripes", epochs: int = 5, limit: int = 1797) -> None:
    images, labels = digits()
    seen, seen_labels, images, labels = images[:256], labels[:256], images[256:limit], labels[256:limit]
    torch.manual_seed(0)
    model = create_model("resnet8", num_classes=10, in_channels=1, image_size=8)
    sf.attach_(model, "se", form="dynamic")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    trajectory = Trajectory()
    for epoch in range(epochs + 1):
        # The same images every time; the model is left as it was, so this can stand anywhere in a training loop.
        report = sf.observe(model, [(seen, seen_labels)], by_class=True)
        trajectory.add(epoch, report)
        if epoch == epochs:
            break
        model.train()
        for chosen in torch.randperm(len(images)).split(64):
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    print(report)
    for gate in trajectory.gates:
        steps = ", ".join(f"{step:.4f}" for step in trajectory.series(gate, "first_difference")[1:])
        print(f"{gate}: mean |v - v of the epoch before| {steps}")
    page = sf.write_report(report, Path(folder), trajectory=trajectory, title="ResNet-8 with SE on digits")
    print(f"open {page}")


if __name__ == "__main__":
    main(*sys.argv[1:2])

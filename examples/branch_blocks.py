"""Diverse branch blocks with gates inside, in a network that has never heard of them; then a plain network again.

Run it: python examples/branch_blocks.py
"""

from __future__ import annotations

import torch

import stripefold as sf
from stripefold_lab.models import create_model


def main(steps: int = 10, kind: str = "dbb") -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    stock = create_model("resnet8", num_classes=10)
    model = sf.branch(stock, kind)
    inside = "layer*.conv*.branches.*bn" if kind != "doconv" else "layer*.conv*"
    sf.attach_(model, "se", where=[inside, "layer*.bn2"])  # in each branch, and behind the block

    counts = [sum(p.numel() for p in each.parameters()) for each in (stock, model)]
    print(f"parameters: {counts[0]:,} stock, {counts[1]:,} while it trains")
    optimizer = torch.optim.SGD(sf.param_groups(model, weight_decay=1e-4), lr=0.05, momentum=0.9)
    for step in range(steps):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")

    plain, report = sf.fold(model, example=images, report=True)
    print(f"folded {len(report.folded)} blocks and gates")
    print(sf.verify(model, plain, images))
    stock.load_state_dict(plain.state_dict(), strict=True)
    print("its weights load into the stock network")


if __name__ == "__main__":
    main()

"""Fine-tune a timm model with ASR(SE), fold it, and load the weights into the stock model.

Run it: python examples/timm_model.py resnet18
"""

from __future__ import annotations

import sys

import timm
import torch

import stripefold as sf


def main(name: str = "resnet18", steps: int = 2, size: int = 224) -> None:
    torch.manual_seed(0)
    # With pretrained=True the same; init="identity" keeps what the weights know.
    model = timm.create_model(name, num_classes=10)
    sf.attach_(model, "se", init="identity")
    optimizer = torch.optim.SGD(sf.param_groups(model, weight_decay=1e-4), lr=0.01, momentum=0.9)
    for step in range(steps):
        images, labels = torch.randn(4, 3, size, size), torch.randint(10, (4,))
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")

    example = torch.randn(2, 3, size, size)
    plain = sf.fold(model, example=example)
    print(sf.verify(model, plain, example))

    stock = timm.create_model(name, num_classes=10)
    stock.load_state_dict(plain.state_dict())
    print(f"{name}: the folded weights load into the stock model")


if __name__ == "__main__":
    main(*sys.argv[1:2])

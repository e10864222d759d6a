"""Gates in a model of your own: choose the places, train the gates only, fold.

Run it: python examples/own_model.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import stripefold as sf


class Mixer(nn.Module):
    """A small residual network over sequences (N, T, C)."""

    def __init__(self, channels: int = 32, tokens: int = 16) -> None:
        super().__init__()
        self.norm1, self.mix = nn.LayerNorm(channels), nn.Linear(tokens, tokens)
        self.norm2, self.up, self.down = nn.LayerNorm(channels), nn.Linear(channels, 64), nn.Linear(64, channels)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def main(steps: int = 20) -> None:
    torch.manual_seed(0)
    example = torch.randn(8, 16, 32)
    model = Mixer()
    print(sf.sites(model, example=example))

    # An SE gate behind the channel branch, a plain learnable vector on both normalisations.
    sf.attach_(model, where={"norm*": {"attention": "scale"}, "down": {"attention": "se"}}, example=example)
    gates = [parameter for name, parameter in model.named_parameters() if ".gates." in name]
    optimizer = torch.optim.Adam(gates, lr=1e-2)
    labels = torch.randint(4, (8,))
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(example), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print({name: [round(value, 2) for value in scale[:4].tolist()] for name, scale in sf.scales(model).items()})

    plain = sf.fold(model, example=example)
    assert type(plain) is Mixer
    print(sf.verify(model, plain, example))


if __name__ == "__main__":
    main()

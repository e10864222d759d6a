"""The batch of an example: found, resized, left open."""

from __future__ import annotations

import pytest
import torch

from stripefold.errors import ExportError
from stripefold.export.batch import arguments_of, batch_size, input_leaves, noise_like, open_batch, resized


def test_every_tensor_with_the_batch_in_front_is_resized() -> None:
    x, ids, table = torch.arange(6.0).view(2, 3), torch.tensor([[1], [2]]), torch.zeros(5, 2)
    example = {"x": x, "ids": ids, "table": table, "flag": True}
    assert batch_size(example) == 2
    bigger = resized(example, 5)
    assert bigger["x"].tolist() == [x[i % 2].tolist() for i in range(5)]
    assert bigger["ids"].flatten().tolist() == [1, 2, 1, 2, 1]
    assert bigger["table"] is table
    assert bigger["flag"] is True
    assert resized(example, 1)["x"].tolist() == [[0.0, 1.0, 2.0]]


def test_noise_leaves_numbers_that_name_something() -> None:
    ids = torch.tensor([[3], [4]])
    noise = noise_like((torch.zeros(2, 50), ids), 3, seed=1)
    assert noise[0].shape == (3, 50)
    assert 0.5 < float(noise[0].std()) < 1.5
    assert noise[1].flatten().tolist() == [3, 4, 3]
    assert torch.equal(noise[0], noise_like((torch.zeros(2, 50), ids), 3, seed=1)[0])
    assert not torch.equal(noise[0], noise_like((torch.zeros(2, 50), ids), 3, seed=2)[0])


def test_arguments_and_open_dimensions() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(4)
    assert arguments_of(x) == ((x,), {})
    assert arguments_of((x, y)) == ((x, y), {})
    assert arguments_of({"a": x}) == ((), {"a": x})
    shapes = open_batch((x, y))
    assert list(shapes[0]) == [0]
    assert shapes[0][0].__name__ == "batch"
    assert shapes[1] is None
    assert [id(leaf) for leaf in input_leaves((x, y, 3))] == [id(x), id(y)]


@pytest.mark.parametrize(
    ("example", "match"),
    [
        ((), "holds no tensor"),
        (torch.tensor(1.0), r"begins with a tensor of shape \(\)"),
        (torch.zeros(0, 3), r"shape \(0, 3\)"),
    ],
)
def test_no_batch(example: object, match: str) -> None:
    with pytest.raises(ExportError, match=match):
        batch_size(example)

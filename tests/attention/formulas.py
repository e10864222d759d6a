"""Every attention's formula written out in numpy, float64, apart from the code it checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
Parameters = Mapping[str, Array]


def parameters_of(module: nn.Module) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def adaptive_mean(x: Array, cells: int) -> Array:
    """(N, C, H, W) -> (N, C, cells, cells); cell i covers floor(i H / n) up to ceil((i + 1) H / n)."""
    height, width = x.shape[2:]
    out = np.empty((*x.shape[:2], cells, cells))
    for i in range(cells):
        for j in range(cells):
            rows = slice(i * height // cells, -(-(i + 1) * height // cells))
            columns = slice(j * width // cells, -(-(j + 1) * width // cells))
            out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


def squeeze_mean(x: Array) -> Array:
    return x.mean((2, 3))


def squeeze_mean_deviation(x: Array) -> Array:
    deviation = np.sqrt(x.var((2, 3), ddof=1) + 1e-5)
    return np.stack((x.mean((2, 3)), deviation), -1)


def squeeze_pyramid(x: Array) -> Array:
    return np.concatenate([adaptive_mean(x, level).reshape(len(x), -1) for level in (1, 2, 4)], 1)


def squeeze_mean_max(x: Array) -> Array:
    return np.stack((x.mean((2, 3)), x.max((2, 3))), -1)


def squeeze_norm(x: Array) -> Array:
    return np.sqrt((x**2).sum((2, 3)) + 1e-5)


TOP_U = (0, 0, 6, 0, 0, 1, 1, 4, 5, 1, 3, 0, 0, 0, 3, 2)
TOP_V = (0, 1, 0, 5, 2, 0, 2, 0, 0, 6, 0, 4, 6, 3, 5, 2)


def squeeze_dct(x: Array) -> Array:
    channels = x.shape[1]
    cells = adaptive_mean(x, 7)
    out = np.zeros(x.shape[:2])
    for c in range(channels):
        u, v = TOP_U[c * 16 // channels], TOP_V[c * 16 // channels]
        scale = (1 if u == 0 else math.sqrt(2)) * (1 if v == 0 else math.sqrt(2)) / 7
        for i in range(7):
            for j in range(7):
                wave = math.cos(math.pi * u * (i + 0.5) / 7) * math.cos(math.pi * v * (j + 0.5) / 7)
                out[:, c] += scale * wave * cells[:, c, i, j]
    return out


def perceptron(p: Parameters, d: Array, prefix: str = "mlp") -> Array:
    w1, w2 = p[f"{prefix}.reduce.weight"], p[f"{prefix}.expand.weight"]
    b1, b2 = p.get(f"{prefix}.reduce.bias", np.zeros(len(w1))), p.get(f"{prefix}.expand.bias", np.zeros(len(w2)))
    return np.maximum(d @ w1.T + b1, 0) @ w2.T + b2


def excite_se(p: Parameters, d: Array) -> Array:
    return sigmoid(perceptron(p, d))


def excite_ie(p: Parameters, d: Array) -> Array:
    return sigmoid(p["weight"] * d + p["bias"])


def excite_srm_static(p: Parameters, d: Array) -> Array:
    z = p["weight"][:, 0] * d[..., 0] + p["weight"][:, 1] * d[..., 1]
    return sigmoid(p["norm.weight"] * z + p["norm.bias"])


def excite_srm(p: Parameters, d: Array) -> Array:
    """With the running statistics, as in evaluation."""
    z = p["weight"][:, 0] * d[..., 0] + p["weight"][:, 1] * d[..., 1]
    z = (z - p["norm.running_mean"]) / np.sqrt(p["norm.running_var"] + 1e-5)
    return sigmoid(p["norm.weight"] * z + p["norm.bias"])


def excite_srm_training(p: Parameters, d: Array) -> Array:
    z = p["weight"][:, 0] * d[..., 0] + p["weight"][:, 1] * d[..., 1]
    z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    return sigmoid(p["norm.weight"] * z + p["norm.bias"])


def excite_eca(p: Parameters, d: Array) -> Array:
    kernel = p["conv.weight"][0, 0]
    half = len(kernel) // 2
    padded = np.concatenate((np.zeros((*d.shape[:-1], half)), d, np.zeros((*d.shape[:-1], half))), -1)
    mixed = sum(weight * padded[..., k : k + d.shape[-1]] for k, weight in enumerate(kernel))
    return sigmoid(np.asarray(mixed))


def excite_cbam(p: Parameters, d: Array) -> Array:
    return sigmoid(perceptron(p, d[..., 0]) + perceptron(p, d[..., 1]))


def excite_gct(p: Parameters, d: Array) -> Array:
    s = p["alpha"] * d
    rms = np.sqrt((s**2).mean(-1, keepdims=True) + 1e-5)
    return 1 + np.tanh(p["gamma"] * s / rms + p["beta"])


def excite_ge(p: Parameters, d: Array) -> Array:
    gathered = p["weight"] * d + p["bias"] if "weight" in p else d
    return sigmoid(perceptron(p, gathered) if "mlp.reduce.weight" in p else gathered)


def excite_ese(p: Parameters, d: Array) -> Array:
    return np.clip(d @ p["mix.weight"].T + p["mix.bias"] + 3, 0, 6) / 6


def step_dia(p: Parameters, d: Array, h: Array, c: Array) -> tuple[Array, Array]:
    gates = perceptron(p, d, "from_descriptor") + perceptron(p, h, "from_state")
    i, f, g, o = np.split(gates, 4, -1)
    cell = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * sigmoid(cell), cell


def excite_dia(p: Parameters, d: Array) -> Array:
    return step_dia(p, d, np.zeros_like(d), np.zeros_like(d))[0]


def excite_scale(p: Parameters, d: Array) -> Array:
    del p
    return d


SQUEEZE: dict[str, Callable[[Array], Array]] = {
    "se": squeeze_mean,
    "ie": squeeze_mean,
    "srm": squeeze_mean_deviation,
    "spa": squeeze_pyramid,
    "eca": squeeze_mean,
    "cbam": squeeze_mean_max,
    "gct": squeeze_norm,
    "fca": squeeze_dct,
    "ge": squeeze_mean,
    "ese": squeeze_mean,
    "dia": squeeze_mean,
}
EXCITE: dict[str, Callable[[Parameters, Array], Array]] = {
    "se": excite_se,
    "ie": excite_ie,
    "srm": excite_srm,
    "spa": excite_se,
    "eca": excite_eca,
    "cbam": excite_cbam,
    "gct": excite_gct,
    "fca": excite_se,
    "ge": excite_ge,
    "ese": excite_ese,
    "dia": excite_dia,
    "scale": excite_scale,
}
EXCITE_STATIC = {**EXCITE, "srm": excite_srm_static}

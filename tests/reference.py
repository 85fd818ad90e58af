"""Attention's formulas (methods, sections 2 and 3) for one image and one query, in float64, as they are written there.

w: a module's state by name, float64 arrays. X: (P, C) features. query: (h,) a row of a table.
"""

import numpy as np
from torch import Tensor, nn

State = dict[str, np.ndarray]


def state_of(module: nn.Module, prefix: str = "") -> State:
    own = {name.removeprefix(prefix): value for name, value in module.state_dict().items() if name.startswith(prefix)}
    return {name: as_float64(value) for name, value in own.items()}


def below(w: State, prefix: str) -> State:
    return {name.removeprefix(f"{prefix}."): value for name, value in w.items() if name.startswith(f"{prefix}.")}


def as_float64(value: Tensor) -> np.ndarray:
    return value.detach().double().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum())


def linear(w: State, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def batch_norm(w: State, name: str, x: np.ndarray) -> np.ndarray:
    """In evaluation mode, over the last axis."""
    scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + 1e-5)
    return (x - w[f"{name}.running_mean"]) * scale + w[f"{name}.bias"]


def spatial_map(w: State, X: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(P,) softmax over positions of <tanh(FC query), tanh(BN(Conv1x1 X))> / sqrt(h)."""
    U = np.tanh(batch_norm(w, "norm", linear(w, "key", X)))  # (P, h)
    a = np.tanh(linear(w, "query", query))  # (h,)
    return softmax(np.array([a @ U_j for U_j in U]) / np.sqrt(len(query)))


def channel_gate(w: State, pooled: np.ndarray, query: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
    """(C,) sigmoid(FC ReLU(FC [pooled; ReLU(FC query); context])), the concatenation made."""
    names = ["read_pooled", "read_query", "read_context"][: 2 if context is None else 3]
    joined = {"fc.weight": np.hstack([w[f"{name}.weight"] for name in names]), "fc.bias": w["read_pooled.bias"]}
    parts = [pooled, relu(linear(w, "query", query))] + ([] if context is None else [context])
    return sigmoid(linear(w, "write", relu(linear(joined, "fc", np.concatenate(parts)))))

"""Every network's formulas (methods, sections 2 to 6) for one image and one query in float64, as they are written.

w: a module's state by name, float64 arrays. X: (P, C) features. query: a row of a table. own: (M,) attribute of each
class. A network's formula gives the parts of its Outputs for one image, by name.
"""

import math
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

State = dict[str, np.ndarray]
Parts = dict[str, np.ndarray]


def in_float64() -> mock._patch:
    """A context in which .float() leaves float64 as it is, for comparisons that float32's rounding would blur."""
    rounded = torch.Tensor.float
    return mock.patch.object(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else rounded(x))


def state_of(module: nn.Module) -> State:
    return {name: as_float64(value) for name, value in module.state_dict().items()}


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


def spatial_map(w: State, X: np.ndarray, query: np.ndarray, prior: np.ndarray | float = 1.0) -> np.ndarray:
    """(P,) exp(<tanh(FC query), tanh(BN(Conv1x1 X))> / sqrt(h)) * prior, divided by its sum; without BN where w has
    none. prior: (P,) weights of the positions."""
    projected = linear(w, "key", X)
    U = np.tanh(batch_norm(w, "norm", projected) if "norm.weight" in w else projected)  # (P, h)
    a = np.tanh(linear(w, "query", query))  # (h,)
    weight = np.exp([a @ U_j / np.sqrt(len(a)) for U_j in U]) * prior
    return weight / weight.sum()


def channel_gate(w: State, pooled: np.ndarray, query: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
    """(C,) sigmoid(FC ReLU(FC [pooled; ReLU(FC query); context])), the concatenation made."""
    names = ["read_pooled", "read_query", "read_context"][: 2 if context is None else 3]
    joined = {"fc.weight": np.hstack([w[f"{name}.weight"] for name in names]), "fc.bias": w["read_pooled.bias"]}
    parts = [pooled, relu(linear(w, "query", query))] + ([] if context is None else [context])
    return sigmoid(linear(w, "write", relu(linear(joined, "fc", np.concatenate(parts)))))


def attribute_query(w: State, n: int, own: np.ndarray) -> np.ndarray:
    """A_n, or the one-hot vector of n where w has no table."""
    return w.get("attributes.table.rows", np.eye(own[-1] + 1))[n]


def attribute_branch(w: State, X: np.ndarray, n: int, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha_n (P,), g_n (C,), h_n (C,): methods, sections 3 and 6.2 (i)."""
    query = attribute_query(w, n, own)
    alpha = spatial_map(below(w, "attributes.spatial"), X, query)
    z = alpha @ X
    gate = channel_gate(below(w, "attributes.channel"), z, query)
    return alpha, gate, z * gate


def head_logits(w: State, embeddings: np.ndarray, own: np.ndarray) -> Parts:
    """o_m = w_m . h_n + b_m from the embedding (N, D) of each class's attribute; none where w has no heads."""
    if "heads.weight" not in w:
        return {}
    return {"logits": np.array([w["heads.weight"][m] @ embeddings[n] + w["heads.bias"][m] for m, n in enumerate(own)])}


def classifier(w: State, X: np.ndarray, own: np.ndarray) -> Parts:
    return {"logits": linear(w, "head", X.mean(axis=0))}


def frozen(w: State, X: np.ndarray, own: np.ndarray) -> Parts:
    return {"logits": linear(w, "head", batch_norm(w, "norm", X[0]))}


def asen(w: State, X: np.ndarray, own: np.ndarray) -> Parts:
    """Methods, section 2."""
    U = np.tanh(linear(w, "project", X))  # (P, h)
    maps, found = [], []
    for n in range(own[-1] + 1):
        e = np.eye(own[-1] + 1)[n]
        a = np.tanh(e @ w["spatial_query"])
        s = np.array([np.tanh(linear(w, "spatial_logit", a * U_j)[0]) for U_j in U])
        alpha = softmax(s)
        z = alpha @ X
        r = relu(e @ w["channel_query"])
        inner = relu(linear(w, "channel_gate.0", np.concatenate([z, r])))
        maps.append(alpha)
        found.append(linear(w, "output", z * sigmoid(linear(w, "channel_gate.2", inner))))
    return named(maps, found) | head_logits(w, np.array(found), own)


def asen_v2(w: State, X: np.ndarray, own: np.ndarray) -> Parts:
    """Methods, section 3; MODC's network too (section 5)."""
    branches = [attribute_branch(w, X, n, own) for n in range(own[-1] + 1)]
    h = [branch[2] for branch in branches]
    return named([branch[0] for branch in branches], h) | head_logits(w, np.array(h), own)


def asen_pp(w: State, X: np.ndarray, own: np.ndarray) -> Parts:
    """Methods, section 4, the global branch."""
    branches = [attribute_branch(w, X, n, own) for n in range(own[-1] + 1)]
    g = [linear(w, "output", branch[2]) for branch in branches]
    return named([branch[0] for branch in branches], g) | head_logits(w, np.array(g), own)


def asen_pp_local(w: State, x: np.ndarray, n: int, own: np.ndarray) -> np.ndarray:
    """Methods, section 4, the local branch's unit embedding of one region, from its features x (p, c)."""
    query = attribute_query(w, n, own)
    z = spatial_map(below(w, "local_spatial"), x, query) @ x
    return unit(linear(w, "local_output", z * channel_gate(below(w, "local_channel"), z, query)))


def named(maps: list[np.ndarray], embeddings: list[np.ndarray]) -> Parts:
    return {"attribute_maps": np.array(maps), "attribute": np.array([unit(f) for f in embeddings])}


def project(w: State, x: np.ndarray, m: int) -> np.ndarray:
    """P_m x: the shared projection if w has one, then the mask or the matrix of the class."""
    if "shared.weight" in w:
        x = linear(w, "shared", x)
    if "mask" in w:
        x = relu(w["mask"][m]) * x
    return w["own"][m].T @ x if "own" in w else x


def normalised(query: np.ndarray) -> np.ndarray:
    """Mean 0, variance 1."""
    return (query - query.mean()) / np.sqrt(query.var() + 1e-5)


def m3_a(w: State, X: np.ndarray, own: np.ndarray) -> Parts:
    """Methods, section 6.5."""
    h = [attribute_branch(w, X, n, own)[2] for n in range(own[-1] + 1)]
    phi = [unit(project(below(w, "project"), h[n], m)) for m, n in enumerate(own)]
    return asen_v2(w, X, own) | {"classes": np.array(phi)}


def m3_c(w: State, X: np.ndarray, own: np.ndarray) -> Parts:
    """Methods, section 6.5: no attribute attention, no parent, the gate reads [u_m; r_m]."""
    v = below(w, "classes")
    maps, logits, found = [], [], []
    for m in range(len(own)):
        query = w["table.rows"][m]
        beta = spatial_map(below(v, "spatial"), X, query)
        u = beta @ X
        kept = u * channel_gate(below(v, "channel"), u, query)
        maps.append(beta)
        logits.append(w["head"][m] @ kept + w["bias"][m])
        found.append(unit(project(below(v, "project"), kept, m)))
    return {"class_maps": np.array(maps), "logits": np.array(logits), "classes": np.array(found)}


def m3(w: State, X: np.ndarray, own: np.ndarray, refine: bool = True, normalise: bool = True) -> Parts:
    """Methods, section 6.2, with the refinement of m3net.py: where the attribute looked, and what it kept, times over
    (neither without `refine`)."""
    v, first = below(w, "classes"), asen_v2(w, X, own)
    maps, found, evidence = [], [], []
    for m, n in enumerate(own):
        alpha, gate, h = attribute_branch(w, X, n, own)
        focus, gate = ((1 + len(X) * alpha) / 2, gate) if refine else (1.0, 1.0)
        parts = [w["table.rows"][m]]
        if "parent.weight" in w:
            parts.append(w["parent.weight"] @ attribute_query(w, n, own))
        query = sum(normalised(part) if normalise else part for part in parts)
        beta = spatial_map(below(v, "spatial"), X, query, focus)
        u = beta @ X
        kept = u * channel_gate(below(v, "channel"), u, query, h) * gate
        maps.append(beta)
        found.append(unit(project(below(v, "project"), kept, m)))
        evidence.append(w["head"][m] @ u)
    logits = first["logits"] + np.array(evidence)
    return first | {"logits": logits, "class_maps": np.array(maps), "classes": np.array(found)}


FORMULAS: dict[str, Callable[..., Parts]] = {
    "modc": asen_v2,
    "duet": asen_v2,
    **{formula.__name__: formula for formula in (frozen, classifier, asen, asen_v2, asen_pp, m3_a, m3_c, m3)},
}


def bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """image (..., H, W) at a point in pixel coordinates, where pixel i covers [i, i + 1]; its edge goes on outside."""
    H, W = image.shape[-2:]
    y, x = min(max(y - 0.5, 0), H - 1), min(max(x - 0.5, 0), W - 1)
    i, j = int(y), int(x)
    below_i, right_j = min(i + 1, H - 1), min(j + 1, W - 1)
    a, b = y - i, x - j
    upper = (1 - b) * image[..., i, j] + b * image[..., i, right_j]
    lower = (1 - b) * image[..., below_i, j] + b * image[..., below_i, right_j]
    return (1 - a) * upper + a * lower


def cut_out(image: np.ndarray, region: tuple[float, float, float, float], sides: tuple[int, int]) -> np.ndarray:
    """(..., h, w): the region (top, left, height, width) of an image (..., H, W), point by point."""
    top, left, tall, wide = region
    found = np.empty((*image.shape[:-2], *sides))
    for i in range(sides[0]):
        for j in range(sides[1]):
            found[..., i, j] = bilinear(image, top + (i + 0.5) / sides[0] * tall, left + (j + 0.5) / sides[1] * wide)
    return found


def levels(alpha: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """(H, W) of an attention map (rows, columns): enlarged, brought to [0, 255]; before it is rounded down."""
    large = cut_out(alpha, (0, 0, *alpha.shape), sides)
    return (large - large.min()) / (large.max() - large.min()) * 255


def region(alpha: np.ndarray, sides: tuple[int, int], threshold: float) -> tuple[float, float, float, float]:
    """Methods, section 4: top, left, height and width of the square around what is strong in an attention map."""
    H, W = sides
    if alpha.min() == alpha.max():
        return 0, 0, H, W
    level = levels(alpha, sides)
    strong = [(i, j) for i in range(H) for j in range(W) if math.floor(level[i, j]) > 255 * threshold]
    rows, columns = [i for i, _ in strong], [j for _, j in strong]
    top, bottom, left, right = min(rows), max(rows) + 1, min(columns), max(columns) + 1
    side = max(bottom - top, right - left)
    tall, wide = min(side, H), min(side, W)
    y, x = max(0, (top + bottom - tall) / 2), max(0, (left + right - wide) / 2)
    return min(y, H - tall), min(x, W - wide), tall, wide

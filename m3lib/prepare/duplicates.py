"""Find pairs of identical and near-identical photos: recompressed, resized, cropped by a few per cent, or mirrored.

Not found are another pose or light, a watermark, a rotation, and a strong change of brightness or colour.

The nearest neighbours of each photo are searched by signatures of 8 x 8 pixels, plain and mirrored. A crop shifts and
stretches the content, so two photos are aligned before they are compared; they are near-identical if their signatures
then agree in detail and in the colour of every area. One garment in two colours, or from two sides, is two photos.

Letters: I photos, P pairs, n pixels per side.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from m3lib.prepare.signatures import SIDE

COARSE = 8  # pixels per side
NEIGHBOURS = 10
EXACT_SEARCH = 20_000  # photos; of more, neighbours are searched approximately
PROBES = 16  # of the lists of an approximate search, those that are searched
BLOCK = 1024  # pairs, or photos, at a time
# Limits in grey levels, root mean squares unless it says otherwise.
MAX_DISTANCE = 30  # between the coarse signatures of neighbours
MAX_COARSE = 16  # between aligned coarse signatures
MAX_DETAIL = 0.35  # between aligned signatures, as a share of the gradient per pixel
MAX_COLOUR = 6  # between the mean colours of any of 4 x 4 areas
MAX_ASPECT = 0.2  # between the logarithms of width / height
# The alignment
STEPS = 3
MAX_MOVE = 0.1  # largest shift and stretch, as a share of half the side
MAX_GAIN = 0.08  # largest change of brightness, as a share


def find(signatures: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return pairs (P, 2) int, first < second, of positions in `rows` whose photos are near-identical.

    signatures: (I, BYTES) uint8, which may be mapped from a file. rows: those to compare, ascending. Two photos that
    other pairs connect need not be a pair. Which photos are connected does not depend on the order of the rows.
    Memory: about 4 kB per row.
    """
    if not len(rows):
        return np.zeros((0, 2), int)
    digests = [hashlib.blake2b(signatures[row].tobytes(), digest_size=16).digest() for row in rows]
    _, first, which = np.unique(np.array(digests, dtype="S16"), return_index=True, return_inverse=True)
    pairs = np.stack([first[which], np.arange(len(rows))], axis=1)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    found = neighbours(signatures, rows, first)  # in the order of the digests, whatever that of the rows
    parts = blocks(*found, title="similar photos", unit="pair")
    alike = [look_alike(*load(signatures, rows, *part)) for part in parts]
    found = [array[np.concatenate([*alike, np.zeros(0, bool)])] for array in found]
    for a, b, mirrored in blocks(*found, title="aligned photos", unit="pair"):
        group = connect(len(rows), pairs)
        apart = group[a] != group[b]  # aligning takes 3 ms per pair
        a, b, mirrored = a[apart], b[apart], mirrored[apart]
        near = compare(*load(signatures, rows, a, b, mirrored))
        pairs = np.concatenate([pairs, np.stack([a, b], axis=1)[near]])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def connect(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return (count,) the first row of each row's cluster; pairs (P, 2) of rows connect rows."""
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    cluster = connected_components(graph, directed=False)[1]
    return np.unique(cluster, return_index=True)[1][cluster]


def blocks(*arrays: np.ndarray, title: str, unit: str) -> Iterator[list[np.ndarray]]:
    """Yield BLOCK items of each array at a time; a bar shows how many are done."""
    with tqdm(total=len(arrays[0]), desc=title, unit=unit, delay=5) as bar:
        for start in range(0, len(arrays[0]), BLOCK):
            block = [array[start : start + BLOCK] for array in arrays]
            yield block
            bar.update(len(block[0]))


def load(
    signatures: np.ndarray, rows: np.ndarray, a: np.ndarray, b: np.ndarray, mirrored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (P, SIDE, SIDE, 3) float32 of pairs of positions in rows; the second mirrored where it says."""
    first, second = pixels(signatures[rows[a]]), pixels(signatures[rows[b]])
    second[mirrored] = second[mirrored, :, ::-1]
    return first, second


def neighbours(signatures: np.ndarray, rows: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """Return candidate pairs as three arrays (P,): two of the chosen positions in rows, and whether to mirror one."""
    import faiss  # only here: the processes that read photos need `signatures` only

    parts = blocks(rows[chosen], title="signatures", unit="photo")
    coarse = np.concatenate([reduce(pixels(signatures[block])) for (block,) in parts])
    flat = coarse.reshape(len(chosen), -1)
    lists = min(int(4 * np.sqrt(len(chosen))), len(chosen) // 39)  # faiss asks for 39 photos per list
    index = faiss.index_factory(flat.shape[1], "Flat" if len(chosen) <= EXACT_SEARCH else f"IVF{lists},Flat")
    if not index.is_trained:
        index.train(flat[:: max(1, len(chosen) // (64 * lists))])
        index.nprobe = PROBES
    index.add(flat)
    limit, found = flat.shape[1] * MAX_DISTANCE**2, []
    for mirrored in (False, True):
        queried = coarse[:, :, ::-1] if mirrored else coarse
        title = "mirrored neighbours" if mirrored else "neighbours"
        for queries, i in blocks(queried, np.arange(len(chosen)), title=title, unit="photo"):
            distances, others = index.search(np.ascontiguousarray(queries.reshape(len(queries), -1)), NEIGHBOURS)
            close, k = np.nonzero((distances < limit) & (others >= 0))
            pair = np.sort([i[close], others[close, k]], axis=0)
            found.append(np.stack([*pair, np.full(len(close), mirrored)], axis=1))
    found = np.unique(np.concatenate(found), axis=0)
    a, b, mirrored = found[:, 0], found[:, 1], found[:, 2].astype(bool)
    aspect = np.diff(np.log(signatures[rows[chosen], :2].astype(float)))[:, 0]
    alike = (a != b) & (np.abs(aspect[a] - aspect[b]) < MAX_ASPECT)
    return [chosen[a[alike]], chosen[b[alike]], mirrored[alike]]


def pixels(signatures: np.ndarray) -> np.ndarray:
    """Return (P, SIDE, SIDE, 3) float32."""
    return signatures[:, 2:].reshape(-1, SIDE, SIDE, 3).astype(np.float32)


def reduce(images: np.ndarray, side: int = COARSE) -> np.ndarray:
    """Return the means of side x side areas, (P, side, side, 3), of (P, n, n, 3)."""
    size = images.shape[1] // side
    return images.reshape(len(images), side, size, side, size, 3).mean(axis=(2, 4))


def look_alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (P,) bool: whether images (P, SIDE, SIDE, 3) may be near-identical, from 8 x 8 pixels."""
    return root_mean_square(difference(reduce(first), reduce(second))) < MAX_COARSE


def compare(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (P,) bool: whether images (P, SIDE, SIDE, 3) are near-identical."""
    near = np.zeros(len(first), dtype=bool)
    # A crop shows only a part of the other photo, so each is fitted to the other.
    for one, other in ((first, second), (second, first)):
        rest = difference(one, other)[:, 2:-2, 2:-2]
        detail = root_mean_square(rest) / (steepness(one) + 1)
        colour = np.abs(reduce(rest, 4)).max(axis=(1, 2, 3))
        near |= (detail < MAX_DETAIL) & (colour < MAX_COLOUR)
    return near


def root_mean_square(images: np.ndarray) -> np.ndarray:
    """(P,) of (P, n, n, 3)."""
    return np.sqrt((images**2).mean(axis=(1, 2, 3)))


def steepness(images: np.ndarray) -> np.ndarray:
    """(P,): the root mean square gradient per pixel of (P, n, n, 3)."""
    dy, dx = np.gradient(images, axis=(1, 2))
    return np.hypot(root_mean_square(dy), root_mean_square(dx))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a - b (P, n, n, 3) after b is stretched, shifted and brightened to fit a, by Gauss-Newton steps.

    Of the steps, the one with the smallest difference counts.
    """
    count, n = a.shape[:2]
    place = (np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1  # of each pixel, in [-1, 1]
    move = np.zeros((count, 4), np.float32)  # stretch down and across, shift down and across
    best, least = a.copy(), np.full(count, np.inf)
    for step in range(STEPS + 1):
        moved = resample(b, place * (1 + move[:, 0:1]) + move[:, 2:3], axis=1)
        moved = resample(moved, place * (1 + move[:, 1:2]) + move[:, 3:4], axis=2)
        gain = (a * moved).sum(axis=(1, 2, 3)) / np.maximum((moved**2).sum(axis=(1, 2, 3)), 1)
        moved *= gain.clip(1 - MAX_GAIN, 1 + MAX_GAIN)[:, None, None, None]
        rest = a - moved
        size = root_mean_square(rest)
        best[size < least], least = rest[size < least], np.minimum(size, least)
        if step < STEPS:
            dy, dx = (gradient * n / 2 for gradient in np.gradient(moved, axis=(1, 2)))
            slopes = [dy * place[:, None, None], dx * place[:, None], dy, dx]
            jacobian = np.stack(slopes, axis=-1).reshape(count, 3 * n**2, 4)
            transposed = jacobian.transpose(0, 2, 1)
            damped = transposed @ jacobian + 100 * 3 * n**2 * np.eye(4, dtype=np.float32)
            move += np.linalg.solve(damped, transposed @ rest.reshape(count, 3 * n**2, 1))[..., 0]
            move = move.clip(-MAX_MOVE, MAX_MOVE)
    return best


def resample(images: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Interpolate images (P, n, n, 3) linearly along an axis, at places (P, n) in [-1, 1], clipped to the image."""
    n = images.shape[axis]
    position = ((places + 1) / 2 * n - 0.5).clip(0, n - 1)
    lower = np.minimum(position.astype(int), n - 2)
    shape = (len(images), n, 1, 1) if axis == 1 else (len(images), 1, n, 1)
    share, lower = (position - lower).astype(np.float32).reshape(shape), lower.reshape(shape)
    below, above = (np.take_along_axis(images, index, axis) for index in (lower, lower + 1))
    return below + (above - below) * share

"""`make bench WHAT=data`: reading labels at DeepFashion's size, and packing photos compared with Pillow's JPEG decoder.

The labels are random at DeepFashion's size and sparsity (289,222 photos, 1,000 classes, 3.3 per photo); the photos are
smooth noise of about DeepFashion's size. One process; ratios are within one run.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from m3lib import config
from m3lib.data import manifest, store
from m3lib.prepare import deepfashion, pack, public, splits
from m3lib.prepare import photos as images
from tests.bench.measure import peak_gb, seconds

PHOTOS, SIZES = 289_222, (156, 218, 180, 216, 230)
SIDES, COUNT = (300, 225), 300


def write_labels(folder: Path, photos: int) -> None:
    """Annotation files of random labels, and the official partition."""
    rng, classes = np.random.default_rng(0), sum(SIZES)
    for part in ("Anno", "Eval", "img"):
        (folder / part).mkdir()
    kinds = np.repeat(np.arange(len(SIZES)) + 1, SIZES)
    rows = "".join(f"attribute {i:<20} {kind}\n" for i, kind in enumerate(kinds))
    (folder / "Anno/list_attr_cloth.txt").write_text(f"{classes}\nattribute_name attribute_type\n{rows}")
    names = [f"img/Garment_{i // 40:05}/img_{i % 40:08}.jpg" for i in range(photos)]
    parts = rng.choice(["train", "val", "test"], photos, p=[0.8, 0.1, 0.1])
    rows = "".join(f"{name:<60} {part}\n" for name, part in zip(names, parts, strict=True))
    (folder / "Eval/list_eval_partition.txt").write_text(f"{photos}\nimage_name evaluation_status\n{rows}")
    with (folder / "Anno/list_attr_img.txt").open("wb") as file:
        file.write(b"%d\nimage_name attribute_labels\n" % photos)
        for name, count in zip(names, rng.poisson(3.3, photos), strict=True):
            row = bytearray(b"-1 " * classes)
            for i in (rng.random(count) ** 3 * classes).astype(int):  # a long tail
                row[3 * i : 3 * i + 2] = b" 1"
            file.write(name.ljust(60).encode() + bytes(row) + b"\n")


def read_labels(photos: int) -> None:
    settings = config.load(config.find_root() / "params.yaml")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_labels(folder, photos)

        def prepare() -> None:
            source = deepfashion.read(folder)
            frame, _ = public.drawn_split(source, folder)
            frame = frame.assign(key=frame["image"])
            given = manifest.Source(source.taxonomy, frame, images.decode)
            manifest.save(splits.draw(given, settings.split), folder)

        spent, size = seconds(prepare), (folder / "Anno/list_attr_img.txt").stat().st_size
    print(f"labels of {photos:,} photos x {sum(SIZES):,} classes ({size / 1e6:.0f} MB): read, split, checked, written")
    print(f"  in {spent:.1f} s, peak memory {peak_gb():.2f} GB")


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of smooth noise."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8))
        paths.append(folder / f"{i}.jpg")
        small.resize(SIDES, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def load(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def encode(path: Path, kind: str) -> bytes:
    return store.encode(images.fit(images.decode(path), 224, 224, "crop"), kind)


def pack_photos(count: int) -> None:
    steps = {
        "Pillow's JPEG decoder only": load,
        "images.decode": images.decode,
        "decoded, fitted to 224 px, raw": lambda path: encode(path, "raw"),
        "decoded, fitted to 224 px, jpeg": lambda path: encode(path, "jpeg"),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), count)
        costs = {
            name: min(seconds(lambda step=step: [step(path) for path in paths]) for _ in range(5)) / len(paths)
            for name, step in steps.items()
        }
    floor = next(iter(costs.values()))
    print(f"photos of {SIDES[0]} x {SIDES[1]} px, one process:")
    for name, cost in costs.items():
        print(f"  {name:<32} {1000 * cost:5.2f} ms per photo, {floor / cost:.2f} of the decoder's rate")


def main() -> int:
    read_labels(PHOTOS)
    pack_photos(COUNT)
    raw = PHOTOS * 224 * 224 * 3 / 1e9
    print(f"store of {PHOTOS:,} photos at 224 px: raw {raw:.1f} GB, jpeg at most {pack.JPEG_SHARE * raw:.1f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

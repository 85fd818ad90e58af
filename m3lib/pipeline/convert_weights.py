"""Convert the ImageNet weights of installed packages, and run every row's network once: a stage of the pipeline.

`python -Es -X utf8 -m m3lib.pipeline.convert_weights` fills data/imagenet. A backbone that can't be built, has no block
of the name in model.trainable, or can't read images of this size ends the run here, before any training. The stage
reruns when data/backbones.json changes, which the first stage writes.
"""

import shutil
import sys

import torch

from m3lib import systems
from m3lib.config import Settings, Variant, find_root, load
from m3lib.errors import InputError, exit_status
from m3lib.pipeline import environment
from m3lib.pipeline.check_inputs import distinct_backbones
from m3lib.systems.imagenet import convert, converted_file
from m3lib.taxonomy import Attribute, Taxonomy, one_line
from m3lib.training.checkpoint import save_tensors

ANY_TAXONOMY = Taxonomy((Attribute("attribute", ("one", "other")),))


def convert_all(settings: Settings) -> None:
    """Fill data/imagenet with the weights of every backbone that a package brings."""
    folder = find_root() / "data" / "imagenet"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = set()
    for values in distinct_backbones(settings).values():
        for prefix in ("", "local_"):
            if values["pretrained"] and values.get(f"{prefix}weights") == "":
                names.add(values[f"{prefix}backbone"])
    for name in sorted(names):
        if path := converted_file(name):
            tensors = convert(path.stem)
            save_tensors(path, tensors)
            size = sum(tensor.numel() for tensor in tensors.values())
            print(f"{path.name}: {len(tensors)} tensors, {size:,} numbers, all of {path.stem}")


def check(variant: Variant, sides: tuple[int, int]) -> None:
    """Raise InputError unless a row's network can be built and its backbone reads images of sides (height, width)."""
    system = systems.build(variant, ANY_TAXONOMY).eval()
    try:
        with torch.no_grad():
            system.backbone(torch.zeros(1, 3, *sides))
    except Exception as error:  # timm's models raise many types
        name, (height, width) = variant.model.backbone, sides
        problem = f"{variant.name}: {name} can't read images of {height} x {width} pixels ({one_line(str(error))})"
        raise InputError(f"{problem}; set images.height and images.width to a size that it reads") from None


def run() -> None:
    root = find_root()
    environment.enter(root)
    settings = load(root / "params.yaml")
    convert_all(settings)
    for name in distinct_backbones(settings):
        check(settings.variant(name), (settings.images.height, settings.images.width))


if __name__ == "__main__":
    sys.exit(exit_status(run))

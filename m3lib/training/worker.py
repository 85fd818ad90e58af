"""One of several processes that train one variant together, started by torch's launcher (`parallel.launch`).

The first process leaves the checkpoint of the whole run, which the pipeline's stage takes up (`training.fit`).
"""

import sys

from m3lib import config
from m3lib.data import manifest
from m3lib.errors import InputError
from m3lib.training import distributed, trainer


def main(name: str) -> int:
    root = config.find_root()
    try:
        settings = config.load(root / "params.yaml")
        prepared = manifest.open_prepared(root / "data" / "prepared")
        own = settings.variant(name), settings.seed, settings.threads
        checkpoint = root / "data" / "work" / f"{name}.safetensors"
        with distributed.join(settings.accelerator):
            trainer.fit(prepared, *own, checkpoint, settings.accelerator, settings.machines)
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

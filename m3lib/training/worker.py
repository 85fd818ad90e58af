"""The entry point of each process of a distributed training, started by torchrun (`distributed.launch`).

The main process leaves the checkpoint of the finished run, from which the pipeline's stage continues (`trainer.fit`).
"""

import sys

from m3lib import config
from m3lib.data import manifest
from m3lib.errors import InputError
from m3lib.training import distributed, trainer


def main(name: str) -> int:
    """Train the variant `name` of params.yaml; returns the exit status."""
    root = config.find_root()
    try:
        settings = config.load(root / "params.yaml")
        prepared = manifest.open_prepared(root / "data" / "prepared")
        run = settings.variant(name), settings.seed, settings.threads
        checkpoint = root / "data" / "work" / f"{name}.safetensors"
        with distributed.process_group(settings.accelerator):
            trainer.fit(prepared, *run, checkpoint, settings.accelerator, settings.machines)
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Train one variant: a run, which resumes after any epoch, in one process or several."""

import sys
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from m3lib import config
from m3lib.config import Variant
from m3lib.data import files, manifest
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.systems.base import System
from m3lib.training import checkpoint, distributed, inference
from m3lib.training.schedule import StageSchedule
from m3lib.training.trainer import Trainer


def fit(
    prepared: Prepared,
    variant: Variant,
    seed: int,
    threads: int,
    path: Path,
    accelerator: str = "cpu",
    processes: int = 1,
) -> tuple[System, pd.DataFrame]:
    """Train a variant, from its checkpoint if there is one; returns the network at its best epoch, and the curves.

    Curves have one row per epoch: epoch, the mean of each weighted loss, and valid_map_all (a fraction; NaN if nothing
    can be validated). The checkpoint at `path` is written after every epoch; the caller removes it after storing the
    results.

    With several processes, this starts them on this machine unless they, here or on other machines, have finished the
    run, and continues from their checkpoint. Raises InputError if they end early; another call resumes the run.
    """
    fingerprint = checkpoint.run_fingerprint(prepared, variant, seed, threads, accelerator)
    epochs = StageSchedule(variant).epochs
    if processes > 1 and distributed.world_size() == 1:
        if len(checkpoint.read_history(path, fingerprint) or []) < epochs:
            distributed.launch(variant.name, accelerator, processes)
        if len(checkpoint.read_history(path, fingerprint) or []) < epochs:
            problem = f"{processes} processes ended before their last epoch"
            raise InputError(f"{variant.name}: {problem}, for the reason above; the same command resumes the run")
    if not distributed.all_equal(fingerprint):
        differing = "params.yaml, start weights, data/prepared or code"
        raise InputError(f"{variant.name}: the machines differ in {differing}; make them equal")
    trainer = Trainer(prepared, variant, seed, threads, accelerator, path.parent / "activations")
    main = distributed.is_main_process()
    if main:
        check_disk(trainer, path)
    if trainer.resume(path, fingerprint):
        print(f"resumed after epoch {len(trainer.history)}", file=sys.stderr)
    elif main and path.exists():
        reason = "checkpoint of other settings, data or code set aside"
        print(f"{reason}: training {variant.name} from the start", file=sys.stderr)
    done, steps = len(trainer.history), trainer.steps_per_epoch
    with tqdm(total=epochs * steps, initial=done * steps, desc=variant.name, disable=not main) as bar:
        for _ in range(done, epochs):
            trainer.run_epoch(bar)
            trainer.save(path, fingerprint)
            if main:
                bar.set_postfix(valid_map=f"{100 * trainer.history[-1]['valid_map_all']:.1f}")
    if main:
        trainer.system.load_state_dict(trainer.best)
    return trainer.system, pd.DataFrame(trainer.history)


def check_disk(trainer: Trainer, path: Path) -> None:
    """Raise InputError before the first step unless the disk has room for everything that the run will write."""
    prepared, sample = trainer.prepared, trainer.rows[:1]
    weights = sum(value.nbytes for value in trainer.system.state_dict().values())
    checkpoints = 2 * 4 * weights  # the old and the new one: weights, best weights, and two moments of each
    embeddings = vars(inference.embed(trainer.system, prepared, sample, "fp32")).values()
    image = sum(tensor.nbytes for tensor in embeddings if tensor is not None)
    needed = checkpoints + image * (len(prepared.rows("valid")) + len(prepared.rows("test")))
    path.parent.mkdir(parents=True, exist_ok=True)
    what = f"the checkpoints and embeddings of {trainer.variant.name} take"
    files.require_space(path.parent, needed, what, "free some space, or make model.class_embedding smaller")


def main(name: str) -> int:
    """Train the variant `name` of params.yaml as one of several processes, which torchrun starts; returns exit status.

    The main process leaves the checkpoint of the finished run, from which the pipeline's stage continues.
    """
    root = config.find_root()
    try:
        settings = config.load(root / "params.yaml")
        prepared, variant = manifest.open_prepared(root / "data" / "prepared"), settings.variant(name)
        path, accelerator = root / "data" / "work" / f"{name}.safetensors", settings.accelerator
        with distributed.process_group(accelerator):
            fit(prepared, variant, settings.seed, settings.threads, path, accelerator)
    except InputError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

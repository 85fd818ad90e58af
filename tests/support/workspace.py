"""A copy of the repository with tiny settings, in which tests run the pipeline for real."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from dvc.repo import Repo

from m3lib import config
from m3lib.data import code
from m3lib.pipeline import check_inputs, copy_notebooks

ROOT = Path(__file__).parents[2]
VARIANTS = ["asen", "m3"]
PER_VARIANT = ("train", "evaluate", "umap")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "true",
    **dict.fromkeys(("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"), "/no personal settings"),
    **{"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_COUNT": "1"},
    **{"GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},  # the repository may be another user's
    **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "A Test"),
    **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "test@example.org"),
}
TINY = {
    "threads": "1",
    "wardrobe.images": "200",
    "wardrobe.size": "48",
    "images.height": "48",
    "images.width": "48",
    "split.valid": "0.15",
    "split.test": "0.4",
    "model.backbone": "resnet10t",
    "model.backbone_options": "{channels: [16, 16, 32, 32], stem_width: 8}",
    "model.pretrained": "false",
    "model.trainable": "all",
    "train.epochs": "2",
    "umap.attributes": "1",
    "umap.points": "60",
    "variants": "[asen, m3]",
}


MADE = (
    "dvc.lock",
    "data/curves/",
    "data/health/",
    "data/metrics",
    "data/inputs.json",
    "data/backbones.json",
    "data/rows/",
    "data/pairs.csv",
)  # by the pipeline, for other settings


class Clone:
    """A folder with the repository in it, and what a person does there."""

    def __init__(self, folder: Path, said: str = ""):
        self.folder, self.said = folder, said

    @classmethod
    def of(cls, other: "Clone", folder: Path) -> "Clone":
        """A git clone of another, which brings nothing of its cache."""
        other.git("clone", "--quiet", str(other.folder), str(folder))
        return cls(folder)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        command = ["git", *arguments]
        done = subprocess.run(
            command, cwd=cwd or self.folder, env=ENVIRONMENT, capture_output=True, text=True, check=True
        )
        return done.stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "x")

    def put(self, setting: str, value: str) -> None:
        """Change params.yaml by its text, as a person does."""
        section, _, key = setting.rpartition(".")
        if section:
            self.edit("params.yaml", rf"(?ms)^({section}:.*?\n  {key}: )[^#\n]*", rf"\g<1>{value}  ")
        else:
            self.edit("params.yaml", rf"(?m)^({key}: )[^#\n]*", rf"\g<1>{value}  ")

    def edit(self, name: str, pattern: str, new: str) -> None:
        path = self.folder / name
        text, count = re.subn(pattern, new, path.read_text(), count=1)
        assert count == 1, f"{pattern} is not in {name}"
        path.write_text(text)

    def reset(self) -> None:
        self.git("checkout", "--quiet", "--", "params.yaml", "m3lib", "notebooks")

    def start(self, *arguments: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["dvc", *arguments], cwd=self.folder, env=ENVIRONMENT, start_new_session=True, **pipes)

    def dvc(self, *arguments: str, ok: bool = True) -> str:
        """What a dvc command says; its exit status must be as expected."""
        process = self.start(*arguments)
        said, _ = process.communicate()
        assert (process.returncode == 0) == ok, said
        return said

    def refresh(self) -> None:
        """Write what the first two stages write, from this folder's settings and code, but in this process."""
        with pytest.MonkeyPatch.context() as patch:
            for module in (check_inputs, config):
                patch.setattr(module, "find_root", lambda: self.folder)
            patch.setattr(code, "PACKAGE", self.folder / "m3lib")
            code.imports_of.cache_clear()
            assert check_inputs.main() == 0
            copy_notebooks.copy(self.folder)

    def stale(self) -> set[str]:
        """The stages that dvc finds changed, without the one that always is."""
        with Repo(str(self.folder)) as repo:
            return {name.rpartition(":")[2] for name in repo.status()} - {"inputs"}

    def processes(self) -> list[int]:
        """The ids of the processes that work in this folder, in the order of their start."""
        found = []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            with suppress(OSError):  # it has ended, or is another user's
                if link.readlink().is_relative_to(self.folder):
                    found.append(int(link.parent.name))
        return sorted(found)

    def kill(self) -> None:
        """SIGKILL to whatever works in this folder, dvc first, its kernels too."""
        for process in self.processes():
            with suppress(OSError):
                os.kill(process, signal.SIGKILL)


class Copy(Clone):
    """A clone-like copy of the repository's files, edits that are not committed too, with tiny settings, committed."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        names = self.git("ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0")
        for name in filter(None, names):
            if (ROOT / name).is_file() and not name.startswith(MADE):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.git("init", "--quiet")
        for setting, value in TINY.items():
            self.put(setting, value)
        self.commit()


def finished(factory: pytest.TempPathFactory, name: str) -> Clone:
    """A copy in which the whole pipeline went through, committed; `said` is what dvc said.

    The pipeline runs once, for the first of the test workers that asks; each gets a copy of its own.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # the workers' folders lie beside each other
    made, said = shared / "finished", shared / "finished.txt"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            shutil.rmtree(made, ignore_errors=True)  # of a worker that failed at it
            made.mkdir()
            copy = Copy(made)
            words = copy.dvc("repro")
            copy.commit()
            said.write_text(words)
    folder = factory.mktemp(name)
    # the warm process of that run may not have removed its socket yet
    shutil.copytree(made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("warm-*"))
    return Clone(folder, said.read_text())


def stages_run(said: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", said)


def every(*names):
    return {f"{name}@{variant}" for name in names for variant in VARIANTS}

"""Notebooks that start from a warm process: as from a new one, and neither outlives what it belongs to.

A shell replaces dvc in these tests. It starts each stage with DVC_STAGE in its environment, as dvc does.
"""

import csv
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from notebook_runs import MAX_WAIT, Workspace, outputs

STAGE = f"'{sys.executable}' -Es -X utf8 -m m3lib.pipeline.run_notebook"


class Dvc:
    """A shell that runs stages in a workspace, one after the other."""

    def __init__(self, workspace: Workspace):
        self.workspace, self.said = workspace, workspace.folder / "said"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        variables = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
        self.shell = subprocess.Popen(["sh"], cwd=workspace.folder, env=variables, start_new_session=True, **pipes)

    def start(self, *arguments: str) -> None:
        self.shell.stdin.write(f"DVC_STAGE=x {STAGE} {' '.join(arguments)} >said 2>&1; echo $?\n")

    def wait(self) -> int:
        """Return the exit status of the stage."""
        return int(self.shell.stdout.readline())

    def run(self, *arguments: str) -> int:
        self.start(*arguments)
        return self.wait()

    def stages(self) -> list[psutil.Process]:
        """The processes of stages that wait for their notebook."""
        return [child for child in psutil.Process(self.shell.pid).children(recursive=True) if "-Es" in child.cmdline()]

    def kill(self) -> None:
        self.shell.kill()
        self.shell.communicate()


def warm_processes(workspace: Workspace) -> list[psutil.Process]:
    """The warm process and its forks, in the order of their start."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline", "create_time"]):
        if process.info["cwd"] == str(workspace.folder) and "m3lib.pipeline.warm" in (process.info["cmdline"] or ()):
            found.append(process)
    return sorted(found, key=lambda process: (process.info["create_time"], process.pid))


def sockets(workspace: Workspace) -> list[Path]:
    return list((workspace.folder / "data" / "work").glob("warm-*"))


def reached(workspace: Workspace) -> None:
    """Wait until the notebook `slow` says that it runs."""
    until = time.monotonic() + MAX_WAIT
    while not (workspace.folder / "reached").exists():
        assert time.monotonic() < until
        time.sleep(0.05)


SLOW = """
from pathlib import Path
import time
Path("reached").touch()
while not Path("go").exists():
    time.sleep(0.05)
"""
WARM = 'from pathlib import Path\nPath("how").write_text(Path("/proc/self/cmdline").read_text());'


@pytest.fixture(scope="module")
def dvc(tmp_path_factory):
    """In a folder with a space, an accent, and a path longer than that of a socket may be."""
    folder = tmp_path_factory.mktemp("warm") / ("é" * 60) / "a b"
    folder.mkdir(parents=True)
    dvc = Dvc(Workspace(folder))
    yield dvc
    dvc.kill()
    psutil.wait_procs(warm_processes(dvc.workspace), MAX_WAIT)


@pytest.fixture
def folder(dvc):
    """The workspace's folder, in which no notebook waits or runs any more after the test."""
    yield dvc.workspace.folder
    (dvc.workspace.folder / "go").touch()
    psutil.wait_procs(warm_processes(dvc.workspace)[1:], MAX_WAIT)
    for name in ("go", "reached", "how"):
        (dvc.workspace.folder / name).unlink(missing_ok=True)


EVERYTHING = (
    "import json, os, resource, signal, sys, threading",
    "sys.flags, sys.path, [a for a in sys.argv if not a.endswith('.json')], sys.executable, hash('x'), os.getcwd()",
    "[signal.getsignal(n) for n in sorted(signal.valid_signals())], sorted(signal.pthread_sigmask(0, []))",
    "[resource.getrlimit(n) for n in range(16)], os.umask(0o22), os.nice(0), os.sched_getaffinity(0)",
    "sorted(t.name for t in threading.enumerate()), sorted(os.listdir('/proc/self/fd'))[:3], sys.stdin.read()",
    "[os.getpid() == os.getpgid(0) == os.getsid(0), os.isatty(1), sys.stdout.encoding, sys.getrecursionlimit()]",
    "import locale, time\nlocale.setlocale(locale.LC_ALL, None), time.tzname, sys.getfilesystemencoding()",
    "import numpy as np, pandas as pd, matplotlib, torch, sklearn, timm, faiss, seaborn",
    "{k: v for k, v in sorted(os.environ.items()) if k not in ('JPY_PARENT_PID', 'JPY_SESSION_NAME', 'PWD', '_')}",
    "matplotlib.get_backend(), dict(matplotlib.rcParams), pd.options.display.max_columns, torch.get_num_threads()",
    "pd.DataFrame(np.arange(90).reshape(1, 90))",
    "print(pd.DataFrame(np.arange(90).reshape(1, 90)), np.geterr())",
    "seaborn.lineplot(x=[1, 2, 3], y=[2, 1, 2]);",
    "torch.manual_seed(0)\na = torch.randn(300, 300)\nfloat((a @ a).sum()), float(np.linalg.svd(a.numpy())[1].sum())",
    "from types import SimpleNamespace as Settings\nfrom m3lib.figures import umap\n"
    "umap.positions(a.numpy()[:40, :8], Settings(neighbors=5, min_dist=0.1), 0)[:3]",
    "from concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import get_context\n"
    "with ProcessPoolExecutor(1, get_context('forkserver')) as pool:\n"
    "    found = pool.submit(eval, \"__import__('sys').argv[0], __name__\").result()\nfound",
    "print(variant, file=sys.stderr)\nprint('é \\ud800'.encode('utf-8', 'surrogatepass'))\ninput is print, __name__",
    "[len, sum, type(get_ipython()).__name__, 'get_ipython' in dir(__builtins__)]",
    "1 / 0",
)


def test_a_notebook_from_the_warm_process_has_the_bytes_of_one_from_a_new_process(dvc, folder):
    """Of the executed notebook, with all that a kernel inherits, and of what the terminal shows."""
    workspace = dvc.workspace
    workspace.notebook("all", WARM, *EVERYTHING)
    texts, terminals = [], []
    for tried in ("new", "warm", "warm"):
        status = workspace.run("all", "m3").returncode if tried == "new" else dvc.run("all", "m3")
        assert status == 1
        assert ("m3lib.pipeline.warm" in (folder / "how").read_text()) == (tried == "warm")
        texts.append(workspace.executed("all-m3").read_text())
        terminals.append(dvc.said.read_text() if tried == "warm" else "")
    assert texts[1] == texts[0]
    assert texts[2] == texts[0]
    assert len(outputs(workspace.executed("all-m3"))) >= len(EVERYTHING) - 2
    for terminal in terminals[1:]:
        assert "m3\n" in terminal
        assert "ZeroDivisionError" in terminal
        assert "executed up to the failed cell: notebooks/executed/all-m3.ipynb" in terminal


def test_the_warm_process_has_a_private_socket_no_port_and_no_file_of_a_stage(dvc, folder):
    dvc.workspace.notebook("small", WARM)
    assert dvc.run("small") == 0
    (path,) = sockets(dvc.workspace)
    assert stat.filemode(path.stat().st_mode) == "srw-------"
    warm = warm_processes(dvc.workspace)[0]
    assert warm.net_connections("inet") == []
    files = [os.readlink(path) for path in Path(f"/proc/{warm.pid}/fd").iterdir()]
    assert sorted(re.sub(r"\d+", "", name) for name in files) == [*["/dev/null"] * 3, "anon_inode:[pidfd]", "socket:[]"]


def test_an_edit_between_two_stages_is_seen(dvc, folder):
    module = folder / "m3lib" / "taxonomy.py"
    dvc.workspace.notebook("small", WARM, "from m3lib import taxonomy\nprint(taxonomy.__dict__.get('EDIT'))")
    for edit in ("", "EDIT = 1\n", "EDIT = 22\n"):
        with module.open("a") as file:
            file.write(edit)
        assert dvc.run("small") == 0
        assert "m3lib.pipeline.warm" in (folder / "how").read_text()
        assert outputs(dvc.workspace.executed("small"))[-1].text == f"{edit[7:-1] or None}\n"


def test_the_peak_memory_is_that_of_the_notebook(dvc, folder):
    peaks = []
    for megabytes in (400, 1):
        dvc.workspace.notebook("small", f"text = b'x' * ({megabytes} << 20)")
        assert dvc.run("small") == 0
        with (folder / "data" / "work" / "timings.csv").open() as file:
            peaks.append(float(list(csv.DictReader(file))[-1]["peak_mb"]))
    assert peaks[1] > 50
    assert 350 < peaks[0] - peaks[1] < 600


def test_a_killed_stage_ends_its_kernel(dvc, folder):
    dvc.workspace.notebook("slow", SLOW)
    dvc.start("slow")
    reached(dvc.workspace)
    started = warm_processes(dvc.workspace)[1:]
    assert len(started) >= 2  # the runner and the kernel
    for process in dvc.stages():
        process.kill()
    assert dvc.wait() == 128 + signal.SIGKILL
    assert psutil.wait_procs(started, MAX_WAIT)[1] == []
    assert len(warm_processes(dvc.workspace)) == 1


def test_an_interrupted_stage_ends_with_a_sentence(dvc, folder):
    dvc.workspace.notebook("slow", SLOW)
    dvc.start("slow")
    reached(dvc.workspace)
    started = warm_processes(dvc.workspace)[1:]
    for process in dvc.stages():
        process.send_signal(signal.SIGINT)
    assert dvc.wait() == 1
    assert "slow was interrupted; `dvc repro` continues from its last checkpoint" in dvc.said.read_text()
    assert psutil.wait_procs(started, MAX_WAIT)[1] == []


KILLED = {"os.getpid()": "error: the kernel of dead died", "os.getppid()": "error: the process of dead was killed"}


@pytest.mark.parametrize("process", KILLED)
def test_a_kernel_or_a_runner_that_is_killed_is_one_sentence(dvc, folder, process):
    dvc.workspace.notebook("dead", f"import os, time\nos.kill({process}, 9)\ntime.sleep({MAX_WAIT})")
    assert dvc.run("dead") == 1
    assert f"\n{KILLED[process]}" in dvc.said.read_text()
    assert "Traceback" not in dvc.said.read_text()


def test_other_conditions_have_a_warm_process_of_their_own(dvc, folder):
    dvc.workspace.notebook("small", WARM, "import os\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'))")
    before = sockets(dvc.workspace)
    dvc.shell.stdin.write("export CUDA_VISIBLE_DEVICES=7\n")
    assert dvc.run("small") == 0
    dvc.shell.stdin.write("unset CUDA_VISIBLE_DEVICES\n")
    assert "m3lib.pipeline.warm" in (folder / "how").read_text()
    assert outputs(dvc.workspace.executed("small"))[-1].text == "7\n"
    (other,) = {*sockets(dvc.workspace)} - {*before}
    other.unlink()  # which ends it, as the end of its folder would
    assert psutil.wait_procs(warm_processes(dvc.workspace)[1:], MAX_WAIT)[1] == []


def test_the_warm_process_ends_with_dvc_and_a_socket_that_it_left_is_no_problem(dvc, folder):
    dvc.workspace.notebook("small", WARM)
    assert dvc.run("small") == 0
    (path,) = sockets(dvc.workspace)
    warm = warm_processes(dvc.workspace)
    warm[0].kill()
    psutil.wait_procs(warm, MAX_WAIT)
    assert path.exists()
    assert dvc.run("small") == 0
    assert "m3lib.pipeline.warm" in (folder / "how").read_text()
    assert sockets(dvc.workspace) == [path]
    warm = warm_processes(dvc.workspace)
    dvc.kill()
    assert psutil.wait_procs(warm, MAX_WAIT)[1] == []
    assert sockets(dvc.workspace) == []


def test_without_a_warm_process_a_stage_runs_in_its_own(notebooks):
    module = notebooks.folder / "m3lib" / "pipeline" / "warm.py"
    module.write_text(module.read_text().replace("COMMON = (", 'COMMON = ("no_such_package "'))
    notebooks.notebook("small", WARM, "print(1)")
    dvc = Dvc(notebooks)
    try:
        assert dvc.run("small") == 0, dvc.said.read_text()
    finally:
        dvc.kill()
    assert "ipykernel_launcher" in (notebooks.folder / "how").read_text()
    assert outputs(notebooks.executed("small"))[-1].text == "1\n"

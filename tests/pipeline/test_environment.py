"""What a person or a machine has set does not reach a stage: the same bytes in a hostile environment, in any folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jupyter_client.kernelspec import KernelSpecManager

from m3lib.pipeline import environment, execute
from notebook_runs import Workspace, listing
from workspace import ENVIRONMENT, finished

STAGES = {  # of dvc.yaml: what it is run with besides the hostile variables
    "inputs": {},
    "notebooks": {},
    "prepare": {},
    "train": {"HOME": None},
    "report": {"HOME": "nowhere"},
}
TRAP = "raise SystemExit('a trap')\n"
STYLE = "backend: TkAgg\nfigure.facecolor: red\nlines.linewidth: 9\nfont.size: 30\naxes.grid: True\nsavefig.dpi: 10\n"
TRAPS = {  # files in the home folder of a person
    "kernels/kernels/python3/kernel.json": '{"argv": ["false"], "display_name": "x", "language": "python"}',
    "jupyter/jupyter_config.py": TRAP,
    ".ipython/profile_default/startup/00.py": "import builtins\nbuiltins.sum = builtins.max\nprint('a trap')\n",
    ".ipython/profile_default/ipython_config.py": "c = get_config()\nc.InteractiveShellApp.exec_lines = ['len = max']",
    ".ipython/profile_default/ipython_kernel_config.py": "get_config().InlineBackend.figure_formats = {'svg'}",
    ".config/matplotlib/matplotlibrc": STYLE,
    "matplotlibrc": STYLE,
    "startup.py": TRAP,
    "modules/random.py": TRAP,
    "modules/seaborn.py": TRAP,
    "modules/sitecustomize.py": TRAP,
    ".gitconfig": '[filter "nbstripout"]\n\textrakeys = metadata.kernelspec cell.metadata.tags\n',
}


def set_traps(home: Path) -> dict[str, str]:
    """Write the files; return the variables of a person who uses them.

    The Turkish locale is built if `localedef` and its sources are installed; else its variables name none.
    """
    for name, text in TRAPS.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    places = {
        "HOME": "",
        "JUPYTER_PATH": "kernels",
        "JUPYTER_DATA_DIR": "kernels",
        "JUPYTER_CONFIG_DIR": "jupyter",
        "IPYTHONDIR": ".ipython",
        "MATPLOTLIBRC": "matplotlibrc",
        "MPLCONFIGDIR": ".config/matplotlib",
        "XDG_CONFIG_HOME": ".config",
        "PYTHONSTARTUP": "startup.py",
        "PYTHONPATH": "modules",
        "LOCPATH": "locales",
    }
    if command := shutil.which("localedef"):
        (home / "locales").mkdir()
        options = ["--inputfile=tr_TR", "--charmap=ISO-8859-9", str(home / "locales" / "tr_TR.ISO-8859-9")]
        subprocess.run([command, *options], check=False, capture_output=True)
    return {name: str(home / place) for name, place in places.items()} | {
        **{"MPLBACKEND": "TkAgg", "LC_ALL": "tr_TR.ISO-8859-9", "LANGUAGE": "tr", "TZ": "Asia/Kathmandu"},
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "3"),
        **{
            "OMP_THREAD_LIMIT": "1",
            "PYTHONHASHSEED": "7",
            "PYTHONOPTIMIZE": "2",
            "COLUMNS": "40",
            "NUMBA_DISABLE_JIT": "1",
        },
    }


def written(stage: dict) -> list[str]:
    """The paths that a stage writes, for the row m3."""
    outs = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return [(out if isinstance(out, str) else next(iter(out))).replace("${item.variant}", "m3") for out in outs]


def contents(folder: Path) -> dict[str, bytes | None]:
    files = listing(folder / "data") | listing(folder / "notebooks")
    return {name: data for name, data in files.items() if not name.startswith("work")}


def test_a_hostile_environment_changes_no_byte(tmp_path, tmp_path_factory):
    """Each stage as DVC runs it, with a umask of 077, in a folder with blanks, braces, accents and a long path."""
    folder = tmp_path / "Müllers Fotos {1}" / "商品 %s" / ("x" * 100) / "repository"
    whole = finished(tmp_path_factory, "clean")
    shutil.move(whole.folder, folder)
    (folder / "matplotlibrc").write_text(STYLE)
    expected, hostile = contents(folder), set_traps(tmp_path / "home")
    for name, changes in STAGES.items():
        stage = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"][name]
        for path in map(folder.joinpath, written(stage)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        variables = {key: value for key, value in (ENVIRONMENT | hostile | changes).items() if value is not None}
        command = stage["cmd"].replace("${item.variant}", "m3")
        options = {"cwd": folder, "env": variables, "umask": 0o077, "capture_output": True, "text": True}
        run = subprocess.run(["sh", "-c", command], **options, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "trap" not in run.stdout + run.stderr
    found = contents(folder)
    assert found.keys() == expected.keys()
    assert [name for name, data in expected.items() if found[name] != data] == []


SHOWN = """
import json, os, pathlib, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
with ProcessPoolExecutor(1, get_context("forkserver")) as pool:
    worker = pool.submit(eval, "dict(__import__('os').environ)").result()
child = json.loads(os.popen(f"'{sys.executable}' -c 'import json, os; print(json.dumps(dict(os.environ)))'").read())
found = [dict(os.environ), worker, child, os.getcwd(), sys.executable, sys.path, sum([1, 2])]
pathlib.Path("shown.json").write_text(json.dumps(found))
"""
ADDED = {"JPY_PARENT_PID", "JPY_SESSION_NAME", "MPLBACKEND", "LC_CTYPE", "PYDEVD_USE_FRAME_EVAL"}  # by Jupyter, Python
ADDED |= {"CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "TERM", "PAGER", "GIT_PAGER", "_", "KMP_INIT_AT_FORK"}
ADDED |= {"KMP_DUPLICATE_LIB_OK", "PWD", "SHLVL", "LINES", "COLUMNS"}  # the last two by readline in Python 3.13


def test_a_kernel_and_its_processes_have_the_clean_environment_wherever_they_start(tmp_path):
    folder = tmp_path / "a {b} $c 'd' é"
    folder.mkdir()
    workspace, hostile = Workspace(folder), set_traps(tmp_path / "home")
    workspace.notebook("small", SHOWN)
    command = [sys.executable, "-m", "m3lib.pipeline.run_notebook", "small"]
    variables = os.environ | hostile | {"PYTHONPATH": str(folder), "DVC_ROOT": "original", "TMPDIR": str(tmp_path)}
    subprocess.run(command, cwd=folder / "data" / "notebooks", env=variables, check=True)
    own, worker, child, *rest = json.loads((folder / "shown.json").read_text())
    assert rest[:2] == [str(folder), sys.executable]
    assert not [path for path in rest[2] if path.startswith(str(tmp_path)) and path != str(folder)]
    assert rest[3] == 3
    expected = environment.clean(variables, folder) | {"HOME": hostile["HOME"]}
    assert expected["DVC_ROOT"] == "original"
    for found in (own, worker, child):
        assert found.keys() - expected.keys() <= ADDED
        assert {name: found[name] for name in expected} == expected
        assert found.get("MPLBACKEND", "inline").endswith("inline")


DROPPED = {
    *("MPLBACKEND", "MATPLOTLIBRC", "JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"),
    *("PYTHONWARNINGS", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS", "MKL_CBWR", "NUMBA_NUM_THREADS"),
    *("NUMBA_DISABLE_JIT", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "NCCL_ALGO", "NCCL_PROTO", "LANG", "LANGUAGE"),
    *(
        "NCCL_MIN_NCHANNELS",
        "NCCL_NTHREADS",
        "LC_NUMERIC",
        "COLUMNS",
        "IPY_TEST",
        "PAPERMILL_TRANSLATOR",
        "TQDM_DISABLE",
        "LD_PRELOAD",
        "XDG_CONFIG_DIRS",
    ),
}
NEEDED = {
    *(
        "PATH",
        "LD_LIBRARY_PATH",
        "DVC_ROOT",
        "CUDA_VISIBLE_DEVICES",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "TORCH_HOME",
    ),
    *(
        "https_proxy",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "NCCL_SOCKET_IFNAME",
        "NCCL_IB_DISABLE",
        "GLOO_SOCKET_IFNAME",
        "TMPDIR",
    ),
    *("HSA_OVERRIDE_GFX_VERSION", "ROCM_PATH", "NVIDIA_VISIBLE_DEVICES", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"),
    *(
        "NCCL_TOPO_FILE",
        "NCCL_CROSS_NIC",
        "TP_SOCKET_IFNAME",
        "FI_PROVIDER",
        "FI_EFA_USE_DEVICE_RDMA",
        "UCX_NET_DEVICES",
    ),
}


def test_what_names_a_place_passes_and_what_changes_a_result_does_not(tmp_path):
    found = environment.clean(dict.fromkeys(DROPPED | NEEDED, "x"), tmp_path)
    assert {name for name, value in found.items() if value == "x"} == NEEDED
    assert DROPPED.isdisjoint(found)
    assert found == environment.clean(dict.fromkeys(NEEDED, "x") | dict.fromkeys(found.keys() - NEEDED, "y"), tmp_path)


@pytest.mark.parametrize(("letters", "used"), [(30, True), (40, False)])
def test_a_temporary_folder_too_long_for_a_socket_is_not_used_and_named(tmp_path, monkeypatch, capfd, letters, used):
    folder = "/" + "é" * letters
    monkeypatch.setattr(os, "environ", {"TMPDIR": folder})
    monkeypatch.chdir(tmp_path)
    environment.enter(tmp_path)
    assert os.environ.get("TMPDIR") == (folder if used else None)
    assert capfd.readouterr().err == ("" if used else "note: TMPDIR is not used: its path has more than 70 bytes\n")


def test_a_home_folder_is_kept_and_another_place_found_for_what_it_can_not_take(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = environment.clean(os.environ, tmp_path / "r")
    assert found["HOME"] == str(tmp_path)
    assert found.get("NUMBA_CACHE_DIR") == os.environ.get("NUMBA_CACHE_DIR")
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path))
    found = environment.clean({"HF_HOME": "weights"}, tmp_path / "r")
    assert (found["HOME"], found["HF_HOME"]) == (str(tmp_path), "weights")
    assert Path(found["NUMBA_CACHE_DIR"]).is_relative_to(tmp_path / "r" / "data" / "work")
    monkeypatch.setenv("HOME", "nowhere")
    assert Path(environment.clean({}, tmp_path / "r")["HOME"]).is_relative_to(tmp_path / "r" / "data" / "work")


def test_the_kernel_is_this_interpreters(tmp_path, monkeypatch):
    """Not one that lies on Jupyter's path, nor one that was installed into this interpreter's own folder."""
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(TRAPS["kernels/kernels/python3/kernel.json"])
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setattr("jupyter_core.paths.ENV_JUPYTER_PATH", [str(tmp_path)])
    assert KernelSpecManager().get_kernel_spec("python3").argv == ["false"]
    argv = execute.OwnKernel(kernel_name="python3").kernel_spec.argv
    assert argv[0] == sys.executable
    assert argv[-4:] == ["-m", "ipykernel_launcher", "-f", "{connection_file}"]


@pytest.mark.parametrize("name", ["plain", "Zoë's", "商品"])
def test_a_path_in_which_dvc_can_not_queue_experiments_is_noted_until_the_cache_is_elsewhere(tmp_path, name):
    root = tmp_path / name
    (root / ".dvc").mkdir(parents=True)
    note = environment.experiments_note(root)
    assert (note is None) == (name == "plain")
    if note:
        assert "--queue" in note
        assert f"the letters {''.join(letter for letter in name if not letter.isascii())!r}" in note
    (root / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {tmp_path / 'cache'}\n")
    assert environment.experiments_note(root) is None

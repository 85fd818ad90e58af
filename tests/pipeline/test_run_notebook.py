"""The notebook runner, on small notebooks: equal bytes, error sentences, locks, interrupts."""

import csv
import os
import signal
import time

import nbformat
import psutil
import pytest
import yaml

from m3lib.errors import InputError
from m3lib.pipeline import execute, run_notebook
from notebook_runs import MAX_WAIT, PARAMS, Workspace, check_sentence, listing, outputs
from tiny import ROOT


def test_equal_runs_write_equal_bytes_in_any_folder(notebooks, tmp_path):
    cells = [
        "import sys, time\nfrom tqdm import tqdm\nimport m3lib",
        'for _ in tqdm(range(3), desc="bar"):\n    time.sleep(0.01)\nprint("variant:", variant)',
        'print("a warning", file=sys.stderr)\nprint("to stdout")\n{"a": 1}',
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        "object()",  # displayed with its address in memory
        'import atexit, os\natexit.register(os.write, 2, b"the end of a kernel");',
    ]
    elsewhere = tmp_path / "another folder"
    elsewhere.mkdir()
    texts = []
    for workspace in (notebooks, Workspace(elsewhere)):
        workspace.notebook("small", *cells)
        before = listing(workspace.folder)
        run = workspace.run("small", "m3")
        assert run.returncode == 0, run.stderr
        assert "variant: m3" in run.stdout
        assert "bar: 100%" in run.stderr
        assert "a warning" in run.stderr
        assert "Traceback" not in run.stderr
        assert "the end of a kernel" not in run.stderr
        texts.append(workspace.executed("small-m3").read_text())
        new = {name for name in listing(workspace.folder).keys() - before if not name.startswith("data/work")}
        assert new == {"notebooks", "notebooks/executed", "notebooks/executed/small-m3.ipynb"}
    assert texts[0] == texts[1]
    executed = notebooks.executed("small-m3")
    types = [output.output_type for output in outputs(executed)]
    assert types == ["stream", "stream", "execute_result", "display_data", "execute_result"]
    assert all(output.get("name") != "stderr" for output in outputs(executed))
    for word in (str(tmp_path), "papermill", "duration", "iopub", "100%", time.strftime("%Y-")):
        assert word not in texts[0], word

    assert notebooks.run("small", "m3").returncode == 0  # over an executed copy
    assert executed.read_text() == texts[0]
    with (notebooks.folder / "data" / "work" / "timings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["notebook"] for row in rows] == ["small-m3", "small-m3"]
    assert all(0 < float(row["cell_seconds"]) < float(row["seconds"]) for row in rows)


def test_no_stage_depends_on_timings_and_locks():
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        for kind in ("deps", "outs", "metrics", "plots"):
            assert not any("data/work" in str(path) for path in stage.get(kind, [])), name


def test_an_input_error_prints_its_faults_and_keeps_the_notebook_up_to_it(notebooks):
    error = 'InputError("params.yaml", "seed: too small", "train.lr: too large")'
    notebooks.notebook("wrong", 'print("before")', f"from m3lib.errors import InputError\nraise {error}", 'print("no")')
    run = notebooks.run("wrong")
    assert run.returncode == 1
    lines = ["error: params.yaml has 2 faults:", "  seed: too small", "  train.lr: too large"]
    assert run.stderr.splitlines()[-3:] == lines
    assert "Traceback" not in run.stderr
    assert "executed up to the failed cell: notebooks/executed/wrong.ipynb" in run.stderr
    saved = outputs(notebooks.executed("wrong"))
    assert saved[-2].text == "before\n"
    assert (saved[-1].output_type, saved[-1].ename) == ("error", "InputError")


def test_training_before_preparing_is_one_sentence(notebooks):
    notebooks.copy_notebook("02_train", PARAMS)
    run = notebooks.run("02_train", "m3")
    assert run.returncode == 1
    sentence = run.stderr.splitlines()[-1]
    check_sentence(sentence, ["error: ", "data/prepared is not a prepared data set", "run `dvc repro prepare` first"])
    assert sentence == f"error: {outputs(notebooks.executed('02_train-m3'))[-1].evalue}"
    assert not (notebooks.folder / "data" / "models").exists()


def test_the_answer_is_quoted_below_the_title_and_nothing_else_changes(notebooks):
    notebooks.notebook("small", 'print("m3_a leads by $1:\\n*2* points")')
    source = notebooks.folder / "data" / "notebooks" / "small.ipynb"
    executed = []
    for tags in ([], ["answer"]):
        notebook = nbformat.read(source, as_version=4)
        notebook.cells[0].source = "# A title\n\nText."
        notebook.cells[-1].metadata["tags"] = tags
        nbformat.write(notebook, source)
        assert notebooks.run("small").returncode == 0
        executed.append(nbformat.read(notebooks.executed("small"), as_version=4).cells)
        assert nbformat.read(source, as_version=4) == notebook
    plain, answered = executed
    assert plain[0].source == "# A title\n\nText."
    answer = r"> **Answer.** m3\_a leads by \$1: \*2\* points"
    assert answered[0].source == f"# A title\n\n{answer}\n\nText."
    assert answered[1:-1] == plain[1:-1]
    assert answered[-1].outputs == plain[-1].outputs


def test_an_output_that_comes_late_on_a_busy_machine_is_kept(notebooks):
    """Five seconds after the cell has ended; nbclient waits four by itself."""
    hold = "import sys, time\nsys.stdout.flush_timeout = sys.stderr.flush_timeout = 0\n"
    hold += "get_ipython().kernel.iopub_thread.schedule(lambda: time.sleep(5))"
    notebooks.notebook("late", f"{hold}\n'late'")
    run = notebooks.run("late")
    assert run.returncode == 0, run.stderr
    assert outputs(notebooks.executed("late"))[-1].data["text/plain"] == "'late'"


def test_a_bug_prints_the_traceback_of_its_cell(notebooks):
    notebooks.notebook("bug", "def divide():\n    return 1 / 0", "divide()")
    run = notebooks.run("bug", "m3")
    assert run.returncode == 1
    assert "ZeroDivisionError" in run.stderr
    assert "divide" in run.stderr
    assert "papermill/" not in run.stderr
    assert "error: " not in run.stderr.replace("ZeroDivisionError: ", "")
    assert outputs(notebooks.executed("bug-m3"))[-1].ename == "ZeroDivisionError"


LIMITS = {  # of the machine: what a cell does, words of the sentence
    "memory": ("import torch\ntorch.empty(2**50, dtype=torch.uint8)", ["lower train.batch", "images.height"]),
    "disk": ("import errno, os\nraise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", ["the disk is full"]),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", ["kernel of limit died", "train.batch"]),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_of_the_machine_is_one_sentence(notebooks, limit):
    cell, words = LIMITS[limit]
    notebooks.notebook("limit", 'print("before")', cell)
    run = notebooks.run("limit")
    assert run.returncode == 1
    check_sentence(run.stderr.splitlines()[-1], ["error: ", *words])
    assert "Traceback" not in run.stderr
    assert "executed up to the failed cell: notebooks/executed/limit.ipynb" in run.stderr
    assert "before" in notebooks.executed("limit").read_text()


@pytest.mark.parametrize("number", execute.FULL_DISK)
def test_a_disk_that_is_full_for_the_runner_is_the_same_sentence(number):
    error = OSError(number, os.strerror(number), "notebooks/executed/x.ipynb")
    assert execute.describe(error, "x") == "error: the disk is full: free some space, then run again"


NAMES = ["../01_prepare", "/etc/passwd", "a/b", "..", "", "-x", "a b", "a;b", "a\nb", "$HOME", "a" * 99]


def test_names_and_files_that_are_no_notebooks_are_refused(tmp_path):
    for arguments in [*((name,) for name in NAMES), *(("small", name) for name in NAMES)]:
        with pytest.raises(InputError, match="can't name a notebook or a row"):
            execute.run(tmp_path, *arguments)
    (tmp_path / "data" / "notebooks").mkdir(parents=True)
    for data in (None, b"", b"\xff\xfe", b"{}", b"[1]", b'{"cells": 3, "nbformat": 4, "nbformat_minor": 5}'):
        if data is not None:
            (tmp_path / "data" / "notebooks" / "bad.ipynb").write_bytes(data)
        with pytest.raises(InputError, match=r"bad\.ipynb is missing or is not a notebook; run `dvc repro --force"):
            execute.run(tmp_path, "bad")
    assert set(listing(tmp_path)) == {"data", "data/notebooks", "data/notebooks/bad.ipynb"}


def test_a_wrong_command_prints_its_usage(capsys):
    for arguments in ([], ["a", "b", "c"]):
        assert run_notebook.main(arguments) == 2
        assert capsys.readouterr().err.startswith("usage: ")


def test_a_second_run_of_the_same_notebook_is_refused(notebooks):
    with notebooks.running("m3") as first:
        second = notebooks.run("slow", "m3")
        assert second.returncode == 1
        assert "error: slow-m3 is already being run in this folder" in second.stderr
        assert "Traceback" not in second.stderr
        (notebooks.folder / "go").touch()
        stdout, stderr = first.communicate(timeout=MAX_WAIT)
    assert first.returncode == 0, stderr
    assert "finished" in stdout
    assert outputs(notebooks.executed("slow-m3"))[-1].text == "finished\n"


def test_an_interrupted_run_ends_with_a_sentence_and_leaves_no_process(notebooks):
    with notebooks.running() as process:
        os.killpg(process.pid, signal.SIGINT)  # like Ctrl-C, also to the kernel
        _, stderr = process.communicate(timeout=MAX_WAIT)
        assert process.returncode == 1
        assert "slow was interrupted; `dvc repro` continues from its last checkpoint" in stderr
        assert "m3lib/pipeline/" not in stderr  # of a traceback; the kernel may complain
    children = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(notebooks.folder)]
    assert psutil.wait_procs(children, MAX_WAIT)[1] == []


def test_sockets_of_a_killed_run_are_removed_by_the_next(notebooks):
    notebooks.notebook("dead", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(os.getpid(), 9)")
    assert notebooks.run("dead").returncode == -signal.SIGKILL
    work = notebooks.folder / "data" / "work"
    assert len(list(work.glob("dead-ipc-*"))) == 5
    assert not list(notebooks.folder.glob("kernel-ipc-*"))
    notebooks.notebook("dead", "print(1)")
    assert notebooks.run("dead").returncode == 0
    assert not list(work.glob("dead-ipc-*"))

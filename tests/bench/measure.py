"""Seconds and memory of a piece of work, for all benches."""

import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from m3lib.config import find_root


def seconds(work: Callable[[], object]) -> float:
    """Run the work once; on a GPU, wait for its end."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_new_process(function: str, *arguments: object) -> dict:
    """Call a function of these benches, such as "load.step", in a new process.

    Returns its result, seconds, and peak GB: what torch allocated on a GPU, else resident memory with mapped files.
    Raises CalledProcessError if it fails.
    """
    command = [sys.executable, "-m", "tests.bench.measure", function, json.dumps(arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=find_root())
    return json.loads(done.stdout.splitlines()[-1])


def peak_gb() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the process that started this one
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(int(status.split("VmHWM:")[1].split()[0]), children) / 1e6


if __name__ == "__main__":
    module, name = sys.argv[1].split(".")
    results: list = []
    call = getattr(importlib.import_module(f"tests.bench.{module}"), name)
    spent = seconds(lambda: results.append(call(*json.loads(sys.argv[2]))))
    print(json.dumps({"result": results[0], "seconds": round(spent, 1), "peak GB": round(peak_gb(), 3)}))

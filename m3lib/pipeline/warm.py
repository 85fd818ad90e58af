"""A warm process, from which the notebooks of one `dvc repro` start: it has imported the slow packages, and forks.

The first notebook stage starts it, `python -m m3lib.pipeline.warm` in the environment of the stages; it ends with dvc.
It imports packages that are installed, and forgets m3lib: each notebook has today's code. It starts no thread and
touches no GPU, which a fork would not survive. A stage hands over its terminal through a socket in data/work that only
its user may open, and stays until its notebook has ended. Without a warm process, a stage runs in its own.
"""

import builtins
import gc
import hashlib
import importlib
import itertools
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from m3lib.pipeline import environment

COMMON = (
    "papermill nbstripout ipykernel.ipkernel IPython.core.shellapp IPython.core.debugger tornado.platform.asyncio "
    "pydantic.dataclasses pydantic.type_adapter yaml tqdm numpy pandas pyarrow PIL.Image "
    "torch timm safetensors.torch safetensors.numpy matplotlib.pyplot seaborn"
)
RARE = (
    "sklearn.neighbors faiss m3lib.figures.umap"  # while the second notebook runs; this module prepares umap's import
)
READY, INTERRUPT = b"r", b"i"
PERIOD = 0.5  # seconds between two looks at dvc


def run(arguments: list[str]) -> int | None:
    """Run a notebook from the warm process of the dvc that runs this stage; return its exit status.

    Returns None if no notebook was started: outside a stage, or if anything failed before.
    """
    if "DVC_STAGE" not in os.environ or not Path("dvc.yaml").is_file():
        return None
    try:
        dvc = dvc_process(os.environ["DVC_STAGE"])
        environment.enter(Path.cwd())
        connection = connect(str(Path("data", "work", f"warm-{dvc}-{conditions()}")), dvc)
        socket.send_fds(connection, [json.dumps(arguments).encode()], [0, 1, 2])
        if connection.recv(1) != READY:
            return None
    except OSError:
        return None
    return wait(connection, "-".join(arguments))


def dvc_process(stage: str) -> int:
    """The id of the nearest process above this one that was not started as a part of the stage, as its shell was."""
    pid = os.getppid()
    while f"DVC_STAGE={stage}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        pid = int(re.search(r"(?m)^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
    return pid


def conditions() -> str:
    """A digest of what a process inherits and a stage must have as its own: environment, limits, umask."""
    umask = re.search(r"(?m)^Umask:.*", Path("/proc/self/status").read_text())[0]
    inherited = [sorted(os.environ.items()), Path("/proc/self/limits").read_text(), umask, sys.executable]
    return hashlib.sha256(json.dumps(inherited).encode()).hexdigest()[:16]


def connect(path: str, dvc: int) -> socket.socket:
    """Connect to a warm process; start it if nobody listens."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        Path(path).unlink(missing_ok=True)  # of one that was killed
        with socket.socket(socket.AF_UNIX) as listener:
            umask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(umask)
            listener.listen()
            command = [sys.executable, "-m", "m3lib.pipeline.warm", str(dvc), str(listener.fileno())]
            quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            subprocess.Popen(command, **quiet, pass_fds=[listener.fileno()], start_new_session=True)
        connection.connect(path)
    return connection


def wait(connection: socket.socket, stem: str) -> int:
    """Return the exit status of a notebook; pass on Ctrl-C. The notebook ends if this process does."""
    while True:
        try:
            if status := connection.recv(1):
                return status[0]
            break
        except ConnectionResetError:  # it was killed before it read a Ctrl-C
            break
        except KeyboardInterrupt:
            with suppress(OSError):  # it ends by itself at this moment
                connection.send(INTERRUPT)
    print(f"\nerror: the process of {stem} was killed; most likely memory ran out", file=sys.stderr)
    return 1


class Kernel:
    """A forked process that becomes a kernel; has what jupyter_client expects of a Popen."""

    stdout = stderr = None

    def __init__(self, connection: socket.socket) -> None:
        """Fork. Returns when the process is in a session of its own, without the connection to the stage."""
        self.returncode: int | None = None
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            ours.close()
            connection.close()
            become_kernel(theirs)
        theirs.close()
        self.stdin = ours.makefile("w")
        ours.recv(1)
        ours.close()

    def start(self, command: list[str], *, env: dict[str, str], **_: object) -> "Kernel":
        self.stdin.write(json.dumps([command, env]))
        self.stdin.flush()
        return self  # jupyter_client closes stdin

    def poll(self) -> int | None:
        return self.wait(os.WNOHANG)

    def wait(self, options: int = 0) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def become_kernel(orders: socket.socket) -> None:
    """Run the command of a kernel in this process. Does not return."""
    os.setsid()
    orders.sendall(READY)
    with orders, orders.makefile() as file:
        text = file.read()
    if text:  # else the runner has ended
        command, variables = json.loads(text)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(variables)
        sys.argv = command[command.index("-m") + 1 :]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    os._exit(0)


def follow(connection: socket.socket) -> None:
    """Interrupt this process when the stage is interrupted, and end it with the stage; its kernel sees that."""
    while connection.recv(1) == INTERRUPT:
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(1)


def run_stage(connection: socket.socket) -> None:
    """Run the notebook that a stage asks for, in this forked process and a kernel. Does not return."""
    arguments, terminal, *_ = socket.recv_fds(connection, 65536, 3)
    for stream, descriptor in enumerate(terminal):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "m3lib"]:
        del sys.modules[name]
    kernel = Kernel(connection)
    from jupyter_client import launcher

    from m3lib.pipeline import execute

    launcher.Popen = kernel.start
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    threading.Thread(target=follow, args=(connection,), daemon=True).start()
    connection.sendall(READY)
    status = execute.main(json.loads(arguments))
    sys.stdout.flush()
    connection.sendall(bytes([status]))
    os._exit(status)


def load(names: str) -> None:
    """Import packages as a kernel would, for which pandas and matplotlib have other defaults than elsewhere."""
    builtins.get_ipython = lambda: SimpleNamespace(kernel=True)
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for name in names.split():
        importlib.import_module(name)
    del builtins.get_ipython, os.environ["MPLBACKEND"]
    gc.freeze()


def end_with(dvc: int, path: str) -> None:
    """End this process when dvc has ended or the socket is gone, whatever it is doing."""
    handle = os.pidfd_open(dvc)

    def look(*_: object) -> None:
        if select.select([handle], [], [], 0)[0] or not os.path.exists(path):
            with suppress(OSError):
                os.unlink(path)
            os._exit(0)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, PERIOD, PERIOD)


def serve(listener: socket.socket, dvc: int) -> None:
    """Fork for each stage that connects."""
    end_with(dvc, listener.getsockname())
    load(COMMON)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for these children
    for served in itertools.count(1):
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            run_stage(connection)
        connection.close()
        if served == 2:  # a run of one notebook does without
            load(RARE)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[1]))

"""The environment of a stage: equal for everyone, whatever a person or a machine has set.

A variable reaches a stage only if it is listed here, because it says where something is (a device, a network, weights)
and not what is computed. A list of what to keep out would miss the variable that nobody thought of.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

PASSED = {
    *("PATH", "LD_LIBRARY_PATH", "USER", "LOGNAME", "DVC_ROOT"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH"),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"),
    *("XDG_CACHE_HOME", "TORCH_HOME", "HUGGINGFACE_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "NUMBA_CACHE_DIR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_TOPO_FILE", "NCCL_CROSS_NIC"),
}
PREFIXES = (  # not all of NCCL_: its algorithm and its number of channels change the order of sums
    *("HF_", "HSA_", "ROCM_", "FI_", "UCX_"),
    *("NCCL_SOCKET_", "NCCL_IB_", "NCCL_NET", "NCCL_P2P_", "NCCL_SHM_", "NCCL_DEBUG"),
)
FIXED = {
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "OPENBLAS_NUM_THREADS": "1",  # of numpy, scipy and faiss; torch and faiss itself use `threads` of params.yaml
    "MALLOC_MMAP_THRESHOLD_": str(2**32),  # glibc keeps freed memory: to clear new pages took half of an inference
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "JUPYTER_NO_CONFIG": "1",
    "TQDM_MININTERVAL": "1",
}
FOLDERS = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_CONFIG_HOME")
LONGEST_TMPDIR = 70  # bytes; Python's worker processes add 32 for a socket, whose path may have 107


def clean(outside: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return the environment of the stages of a repository; configuration is looked for in a folder of data/work."""
    own = root / "data" / "work" / "environment"
    passed = {name: value for name, value in outside.items() if name in PASSED or name.startswith(PREFIXES)}
    if "TMPDIR" in outside and len(os.fsencode(outside["TMPDIR"])) <= LONGEST_TMPDIR:
        passed["TMPDIR"] = outside["TMPDIR"]
    home = os.path.expanduser("~")  # it may hold pretrained weights; without HOME, the system's list of users knows it
    passed["HOME"] = home if os.path.isdir(home) else str(own)
    if not os.access(passed["HOME"], os.W_OK):
        passed.setdefault("NUMBA_CACHE_DIR", str(own / "numba"))  # numba raises if it can write nowhere
    return passed | FIXED | {name: str(own / name.lower()) for name in FOLDERS}


def enter(root: Path) -> None:
    """Make the clean environment that of this process and its children, with the repository as working directory."""
    environment = clean(os.environ, root)
    if "TMPDIR" in os.environ.keys() - environment.keys():
        print(f"note: TMPDIR is not used: its path has more than {LONGEST_TMPDIR} bytes", file=sys.stderr)
    os.environ.clear()
    os.environ.update(environment)
    (root / "data" / "work" / "environment").mkdir(parents=True, exist_ok=True)  # IPython warns if it can't write there
    os.chdir(root)


def experiments_note(root: Path) -> str | None:
    """Return why `dvc exp run --queue` and `--temp` would fail in this folder, and what to do; None if they work.

    DVC writes the path of its cache into the settings of an experiment's copy, in ASCII.
    """
    if str(root).isascii():
        return None
    from dvc.config import Config  # only here: its import takes a second

    cache = Config(str(root / ".dvc"))["cache"].get("dir") or str(root)
    if cache.isascii():
        return None
    letters = "".join(dict.fromkeys(letter for letter in cache if not letter.isascii()))
    advice = "move it, or name a folder without such letters in `dvc cache dir --local FOLDER`; plain runs work here"
    return f"DVC can't queue experiments (--queue, --temp) in a folder whose path has the letters {letters!r}: {advice}"

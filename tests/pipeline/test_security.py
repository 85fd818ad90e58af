"""Nothing executes data: pickles, YAML tags, hostile names and pictures; no path leads out, no port is opened."""

import ast
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from test_rubbish import PARAMS, check_sentence, listing, prepared, with_csv
from test_run_notebook import Workspace, running, workspace

from m3lib import checked, config
from m3lib.data import manifest, store
from m3lib.errors import InputError
from m3lib.figures import charts, panels
from m3lib.retrieval.embeddings import Embeddings
from m3lib.systems import backbone
from m3lib.taxonomy import Attribute, caption, one_line
from m3lib.training.trainer import Trainer
from stripes import PREPARED, short
from tiny import BACKBONE, ROOT

__all__ = ["prepared", "workspace"]  # fixtures of other files

# pickles


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """A file that must not come into being, though the trap works."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    yield tmp_path / "pwned"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.safetensors", "w"])
@pytest.mark.parametrize("form", ["torch", "plain"])
def test_a_pickle_for_weights_is_refused_unread(tmp_path, trap, name, form):
    if form == "torch":
        torch.save({"weight": Evil(trap)}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(InputError, match="safetensors") as raised:
        backbone.create_trunk("resnet10t", BACKBONE, False, str(tmp_path / name))
    check_sentence(str(raised.value), [name, "model.weights"])


def test_a_pickle_for_embeddings_or_a_checkpoint_is_refused_unread(tmp_path, trap):
    path = tmp_path / "m3.safetensors"
    torch.save({"rows": Evil(trap)}, path)
    with pytest.raises(InputError, match="can't be read as embeddings"):
        Embeddings.load(path)
    assert not Trainer(PREPARED, short("m3"), 0, 1).resume(path, "print")


@pytest.mark.parametrize("name", [store.RAW, store.INDEX])
def test_a_pickle_in_an_image_store_is_refused_unread(prepared, trap, name):
    (prepared / store.JPEGS).write_bytes(b"x")
    if name == store.RAW:
        (prepared / store.JPEGS).unlink()
    np.save(prepared / name, np.array([Evil(trap)]), allow_pickle=True)
    with pytest.raises(InputError, match="not a prepared data set"):
        manifest.open_prepared(prepared)


def test_a_tag_in_yaml_is_refused_unread(tmp_path, trap):
    for call in ("os.system ['touch {}']", "pathlib.Path.touch ['{}']", "subprocess.run [['touch', '{}']]"):
        (tmp_path / "params.yaml").write_text(f"seed: !!python/object/apply:{call.format(trap)}\n")
        with pytest.raises(InputError, match=r"params\.yaml, line 1: .*python/object"):
            config.load(tmp_path / "params.yaml")


# the code itself

FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "torch.load",
}
FORBIDDEN |= {"pickle.Unpickler", "pd.read_pickle", "joblib.load", "yaml.unsafe_load", "yaml.full_load", "shelve.open"}
FORBIDDEN |= {"pd.eval", "socket.socket"}


def code() -> dict[str, ast.Module]:
    found = {path.name: path.read_text() for path in (ROOT / "m3lib").glob("*.py")}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        found[path.name] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return {name: ast.parse(text) for name, text in found.items()}


def test_no_code_reads_or_runs_what_could_run_something():
    calls = [(name, node) for name, tree in code().items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert len(calls) > 1000
    for name, node in calls:
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert called not in FORBIDDEN, f"{name}: {called}"
        assert "shell" not in given, f"{name}: {called}"
        if called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False", name  # as is numpy's default
        if called == "yaml.load":
            assert ast.unparse(node.args[1]) == "Loader", name
        if called.startswith("subprocess."):
            assert not isinstance(node.args[0], ast.Constant | ast.JoinedStr), f"{name}: a command is a list of words"
    assert issubclass(checked.Loader, checked.yaml.SafeLoader)


# names

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # that a font lacks
NASTY = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a\nb\rc", "$\\frac$", "$x$ and $y", "\\$", "$$")
NASTY += (
    "'; touch pwned; '",
    "$(touch pwned)",
    "`touch pwned`",
    "../../pwned",
    "/pwned",
    "C:\\pwned",
    "{pwned!r}",
    "%s",
)
NASTY += (
    "\u202epwned\u202c",
    "\x1b[31mred\x1b[0m",
    "\u2028",
    "x" * 500,
    "&lt;b&gt;",
    "日本",
    "_hidden",
    "=1+1",
    "\U0001f457",
)


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_a_name_in_a_figure_is_drawn_as_it_stands(name):
    axis = charts.plt.figure().add_subplot(title=caption(one_line(name)))
    axis.figure.canvas.draw()
    drawn, is_formula = axis.title._preprocess_math(axis.title.get_text())
    assert not is_formula
    assert drawn == one_line(name) or (len(drawn) == 40 and drawn[:39] == one_line(name)[:39])
    charts.plt.close("all")


def test_every_figure_takes_hostile_names(tmp_path):
    rng, names = np.random.default_rng(0), [one_line(name) for name in NASTY if one_line(name)]
    percent = pd.DataFrame(rng.random((2, len(names))), index=["asen", "m3"], columns=names)
    pictures = rng.integers(0, 255, (2, 8, 8, 3), np.uint8)
    maps = rng.random((2, len(names), 8, 8))
    points = pd.DataFrame({"x": rng.random(50), "y": rng.random(50), "class_": rng.choice(names, 50)})
    table = pd.DataFrame({"attribute": names, "class_": names, "images": 9, "ap": 1.0, "floor": 0.5})
    drawn = [
        charts.attribute_bars(percent, percent.loc["m3"], "%"),
        panels.attention_panel(pictures, maps, names),
        panels.retrieval_panel(pictures[:1], [pictures], np.ones((1, 2), bool), [" + ".join(names)]),
        charts.umap_panels(dict.fromkeys(names[:4], points)),
        charts.class_chart(table),
    ]
    for number, figure in enumerate(drawn):
        figure.savefig(tmp_path / f"{number}.png", bbox_inches="tight", dpi=40)
    charts.plt.close("all")


def test_names_become_one_line_and_stay_apart_otherwise():
    assert one_line(" a\r\n\tb\u2028\u202ec\x1b[1m ") == "a b c [1m"
    assert one_line("\u0646\u200c\u0647") == "\u0646\u200c\u0647"  # a joiner belongs to the word
    assert Attribute("x", tuple(one_line(name) for name in NASTY if name != "\u2028"))


# pictures


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files that would unpack to half a gigabyte and more."""
    zeros = zlib.compressobj(9)
    flood = b"".join(zeros.compress(bytes(2**20)) for _ in range(500)) + zeros.flush()
    tiff = io.BytesIO()
    tiff.write(b"II*\0\x08\0\0\0" + struct.pack("<H", 2))
    tiff.write(struct.pack("<HHII", 256, 4, 1, 60_000) + struct.pack("<HHII", 257, 4, 1, 60_000) + bytes(4))
    return {
        "wide.png": png(2**31 - 1, 1, chunk(b"IDAT", flood)),
        "large.png": png(60_000, 60_000, chunk(b"IDAT", flood)),
        "text.png": png(8, 8, chunk(b"zTXt", b"Comment\0\0" + flood), chunk(b"IDAT", zlib.compress(bytes(200)))),
        "profile.png": png(8, 8, chunk(b"iCCP", b"icc\0\0" + flood), chunk(b"IDAT", zlib.compress(bytes(200)))),
        "more.png": png(8, 8, chunk(b"IDAT", flood)),
        "large.tif": tiff.getvalue(),
        "large.bmp": b"BM" + struct.pack("<IHHIIiiHHI", 99, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0) + bytes(60),
        "large.ppm": b"P6 60000 60000 255\n" + bytes(99),
        "large.gif": b"GIF89a" + struct.pack("<HHBBB", 65_000, 65_000, 0, 0, 0) + b"," + bytes(9) + b"\x02\0;",
    }


MEASURE = """
import resource, sys
from pathlib import Path
from m3lib import errors
from m3lib.prepare import photos
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        shape = photos.decode(path).shape
    except errors.InputError as error:
        shape = str(error).isprintable()
    print(path.name, shape, round(peak() - before))
"""


def test_a_picture_that_would_fill_the_memory_does_not(tmp_path):
    for name, data in bombs().items():
        assert len(data) < 2**20
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(bombs())
    for line in lines:
        assert " True " in line or "(8, 8, 3)" in line, line  # refused in a sentence, or read at its small size
        assert int(line.split()[-1]) < 64, line  # megabytes more than before


# paths and ports

HEADER = ("image", "colour <b>$\\bad$", "sleeve\n../../pwned", "details")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Workspace, Path, subprocess.CompletedProcess]:
    """01_prepare for real, on a catalogue beside the repository in which every name is hostile, one photo a link."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "repository").mkdir()
    made, photos = Workspace(folder / "repository"), folder / "photos of $(pwned) <b>"
    (photos / "in").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(6 * len(NASTY)):
        name = f"in/{i} $(touch pwned) <b>.png"
        charts.plt.imsave(photos / name, rng.random((16, 16, 3)))
        rows.append((name, NASTY[i % len(NASTY)], NASTY[i * 7 % len(NASTY)], "|".join(rng.choice(NASTY, 2))))
    (photos / rows[0][0]).rename(folder / "elsewhere.png")
    (photos / rows[0][0]).symlink_to(folder / "elsewhere.png")
    pd.DataFrame(rows, columns=HEADER).to_csv(photos / "table.csv", index=False)
    values = {"min_images: 20": "min_images: 2", "valid: 0.1": "valid: 0.3", "test: 0.2": "test: 0.3"}
    values |= {"query: 0.2": "query: 0.5", "height: 96": "height: 32", "width: 96": "width: 32"}
    values |= {"table: table.csv": f"table: '{photos / 'table.csv'}'"}
    text = with_csv(PARAMS)
    for old, new in values.items():
        assert old in text
        text = text.replace(old, new, 1)
    (made.folder / "params.yaml").write_text(text)
    source = (ROOT / "notebooks" / "01_prepare.ipynb").read_text()
    (made.folder / "data" / "notebooks" / "01_prepare.ipynb").write_text(source)
    before = listing(folder)
    done = made.run("01_prepare")
    assert done.returncode == 0, done.stderr
    done.made = set(listing(folder)) - set(before)
    done.kept = {name for name, data in listing(folder).items() if before.get(name, data) == data}
    done.before = set(before)
    return made, folder, done


def test_nothing_is_written_outside_the_places_of_outputs(hostile):
    _, _, done = hostile
    assert done.before <= done.kept
    places = ("repository/data/prepared", "repository/data/work", "repository/notebooks")
    assert {name for name in done.made if not name.startswith(places) and "__pycache__" not in name} == set()


def test_hostile_names_are_text_in_the_executed_notebook(hostile):
    made, _, _ = hostile
    notebook = nbformat.read(made.executed("01_prepare"), as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(html) >= 3
    assert sum("colour &lt;b&gt;" in text for text in html) >= 2
    for text in html:
        assert not re.search(r"<(script|img|b)\b", text)
        assert "tex2jax_ignore" in text  # a `$` in a name is no formula
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "\x1b" not in printed
    assert "\u202e" not in printed


def test_hostile_names_are_whole_in_what_is_prepared(hostile):
    made, _, _ = hostile
    found = manifest.open_prepared(made.folder / "data" / "prepared")
    assert found.taxonomy.names == [one_line(name) for name in HEADER[1:]]
    classes = {name for attribute in found.taxonomy.attributes for name in attribute.classes}
    assert {one_line(name) for name in NASTY} - {""} <= classes
    assert all(name.isprintable() or name == one_line(name) for name in classes)


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    found = []
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            found += [c.laddr for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    return [(address.ip, address.port) for address in found]


def test_a_stage_listens_on_files_and_not_on_the_network(workspace):
    """But for one port of ipykernel's own on loopback, for the output of forked children: it asks for a random key."""
    with running(workspace) as process:
        runner = psutil.Process(process.pid)
        assert len(runner.children(recursive=True)) >= 1
        ports = listening(runner)
        assert {address for address, _ in ports} <= {"127.0.0.1"}
        assert len(ports) <= 1
        assert len(list((workspace.folder / "data" / "work").glob("slow-ipc-*"))) == 5  # the kernel's channels


def test_jupyterlab_listens_on_loopback_alone_and_asks_for_its_token(tmp_path):
    (lab,) = re.findall(r"^\tjupyter lab (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lab == "--ip=127.0.0.1 notebooks"
    command = [Path(sys.executable).parent / "jupyter", "lab", "--no-browser", "--allow-root", "--port-retries=50"]
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    with subprocess.Popen([*command, *lab.split()[:1]], cwd=tmp_path, env=os.environ | homes, stderr=-1) as process:
        try:
            end = time.monotonic() + 90
            while not (ports := listening(psutil.Process(process.pid))):
                assert time.monotonic() < end
                time.sleep(0.2)
            assert {address for address, _ in ports} == {"127.0.0.1"}
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                    f"http://127.0.0.1:{ports[0][1]}/api/contents", timeout=30
                )
        finally:
            process.kill()

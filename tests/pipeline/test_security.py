"""Hostile names and images do no harm, no path leads outside, no port is opened; test_execution.py has the rest."""

import io
import os
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
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import pytest

from m3lib.data import manifest
from m3lib.figures import charts, panels
from m3lib.taxonomy import caption, one_line
from notebook_runs import CSV_PARAMS, MAX_WAIT, Workspace, listing, outputs
from tiny import ROOT

# names

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # missing in a font
NASTY = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a\nb\rc", "$\\frac$", "$x$ and $y", "\\$", "$$"),
    *("'; touch pwned; '", "$(touch pwned)", "`touch pwned`", "../../pwned", "/pwned", "C:\\pwned", "{pwned!r}", "%s"),
    *("\u202epwned\u202c", "\x1b[31mred\x1b[0m", "\u2028", "x" * 500, "&lt;b&gt;", "日本", "_hidden", "=1+1"),
    "\U0001f457",
)


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_a_name_in_a_figure_is_drawn_unchanged(name):
    axis = charts.plt.figure().add_subplot(title=caption(one_line(name)))
    axis.figure.canvas.draw()
    drawn, is_formula = axis.title._preprocess_math(axis.title.get_text())
    assert not is_formula
    assert drawn == one_line(name) or (len(drawn) == 40 and drawn[:39] == one_line(name)[:39])
    charts.plt.close("all")


def test_every_figure_takes_hostile_names(tmp_path):
    rng, names = np.random.default_rng(0), [one_line(name) for name in NASTY if one_line(name)]
    percent = pd.DataFrame(rng.random((2, len(names))), index=["asen", "m3"], columns=names)
    images = rng.integers(0, 255, (2, 8, 8, 3), np.uint8)
    maps = rng.random((2, len(names), 8, 8))
    points = pd.DataFrame({"x": rng.random(50), "y": rng.random(50), "class_": rng.choice(names, 50)})
    table = pd.DataFrame({"attribute": names, "class_": names, "images": 9, "ap": 1.0, "floor": 0.5})
    figures = [
        charts.attribute_bars(percent, percent.loc["m3"], "%"),
        panels.attention_panel(images, maps, names),
        panels.retrieval_panel(images[:1], [images], np.ones((1, 2), bool), [" + ".join(names)]),
        charts.umap_panels(dict.fromkeys(names[:4], points)),
        charts.class_chart(table),
    ]
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.png", bbox_inches="tight", dpi=40)
    charts.plt.close("all")


# images


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


LARGE_FRAME = b"GIF89a\x0a\x00\x0a\x00\x00\x00\x00,\x00\x00\x00\x00\x60\xea\x60\xea\x00\x02\x02L\x01\x00;"


def bombs() -> dict[str, bytes]:
    """Map names to small files that would need half a gigabyte or more when decoded."""
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
        "larger than its header says.gif": LARGE_FRAME,
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
        result = photos.decode(path).shape
    except errors.InputError as error:
        result = str(error).isprintable()
    print(path.name, result, round(peak() - before))
"""


def test_an_image_that_would_fill_the_memory_is_not_decoded(tmp_path):
    for name, data in bombs().items():
        assert len(data) < 2**20
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, tmp_path]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(bombs())
    for line in lines:
        assert " True " in line or "(8, 8, 3)" in line, line  # one sentence, or the small image
        assert int(line.split()[-1]) < 64, line  # megabytes more than before


# paths and ports

HEADER = ("image", "colour <b>$\\bad$", "sleeve\n../../pwned", "details")


class HostileRun(NamedTuple):
    workspace: Workspace
    before: dict[str, bytes | None]  # `listing` of all files before the run
    after: dict[str, bytes | None]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> HostileRun:
    """01_prepare on a catalogue outside the repository in which every name is hostile and one photo is a link."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "repository").mkdir()
    workspace, photos = Workspace(folder / "repository"), folder / "photos of $(pwned) <b>"
    (photos / "in").mkdir(parents=True)
    cells = [re.sub("[\n\r]", "\x0b", name) for name in NASTY]  # a line break in a label is refused, see `test_table`
    rng, rows = np.random.default_rng(0), []
    for i in range(6 * len(NASTY)):
        name = f"in/{i} $(touch pwned) <b>.png"
        charts.plt.imsave(photos / name, rng.random((16, 16, 3)))
        rows.append((name, cells[i % len(cells)], cells[i * 7 % len(cells)], "|".join(rng.choice(cells, 2))))
    (photos / rows[0][0]).rename(folder / "elsewhere.png")
    (photos / rows[0][0]).symlink_to(folder / "elsewhere.png")
    pd.DataFrame(rows, columns=HEADER).to_csv(photos / "table.csv", index=False)
    values = {"min_images: 20": "min_images: 2", "valid: 0.1": "valid: 0.3", "test: 0.2": "test: 0.3"}
    values |= {"query: 0.2": "query: 0.5", "height: auto": "height: 32", "width: auto": "width: 32"}
    values |= {"table: table.csv": f"table: '{photos / 'table.csv'}'"}
    params = CSV_PARAMS
    for old, new in values.items():
        assert old in params
        params = params.replace(old, new, 1)
    workspace.copy_notebook("01_prepare", params)
    before = listing(folder)
    run = workspace.run("01_prepare")
    assert run.returncode == 0, run.stderr
    return HostileRun(workspace, before, listing(folder))


def test_only_the_folders_of_outputs_are_written_to(hostile):
    assert hostile.before.items() <= hostile.after.items()
    folders = ("repository/data/prepared", "repository/data/work", "repository/notebooks")
    assert {name for name in hostile.after.keys() - hostile.before if not name.startswith(folders)} == set()


def test_hostile_names_are_text_in_the_executed_notebook(hostile):
    results = outputs(hostile.workspace.executed("01_prepare"))
    html = [output.data["text/html"] for output in results if "text/html" in output.get("data", {})]
    assert len(html) >= 3
    assert sum("colour &lt;b&gt;" in text for text in html) >= 2
    for text in html:
        assert not re.search(r"<(script|img|b)\b", text)
        assert "tex2jax_ignore" in text  # a `$` in a name starts no formula
    printed = "".join(output.text for output in results if output.output_type == "stream")
    assert "\x1b" not in printed
    assert "\u202e" not in printed


def test_hostile_names_are_complete_in_the_prepared_data(hostile):
    data = manifest.open_prepared(hostile.workspace.folder / "data" / "prepared")
    assert data.taxonomy.names == [one_line(name) for name in HEADER[1:]]
    classes = {name for attribute in data.taxonomy.attributes for name in attribute.classes}
    assert {one_line(name) for name in NASTY} - {""} <= classes
    assert all(name == one_line(name) for name in classes)


def listening_ports(process: psutil.Process) -> list[tuple[str, int]]:
    """(address, port) of a process and its children."""
    connections = []
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            connections += [c.laddr for c in member.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    return [(address.ip, address.port) for address in connections]


def test_a_stage_listens_on_files_and_not_on_the_network(notebooks):
    """The exception is one port on loopback, which ipykernel keeps for forked children; it requires a random key."""
    with notebooks.running() as process:
        runner = psutil.Process(process.pid)
        assert len(runner.children(recursive=True)) >= 1
        ports = listening_ports(runner)
        assert {address for address, _ in ports} <= {"127.0.0.1"}
        assert len(ports) <= 1
        assert len(list((notebooks.folder / "data" / "work").glob("slow-ipc-*"))) == 5  # the kernel's channels


def test_jupyterlab_listens_on_loopback_only_and_requires_its_token(tmp_path):
    (lab,) = re.findall(r"^\tjupyter lab (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lab == "--ip=127.0.0.1 notebooks"
    command = [Path(sys.executable).parent / "jupyter", "lab", "--no-browser", "--allow-root", "--port-retries=50"]
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = {"cwd": tmp_path, "env": os.environ | homes, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, lab.split()[0]], **options) as process:
        try:
            while not (ports := listening_ports(psutil.Process(process.pid))):
                assert process.poll() is None
                time.sleep(0.2)
            assert {address for address, _ in ports} == {"127.0.0.1"}
            client = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with pytest.raises(urllib.error.HTTPError, match="403"):
                client.open(f"http://127.0.0.1:{ports[0][1]}/api/contents", timeout=MAX_WAIT)
        finally:
            process.kill()

"""notebooks/explore.ipynb end to end: JupyterLab, headless Chromium, and the keyboard, on a tiny index of stripes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from m3lib import config, systems
from m3lib.data import manifest
from m3lib.search import Index, build
from m3lib.training import checkpoint, trainer
from stripes import SIDE, STRIPES, make_stripes
from tiny import ROOT, SETTINGS, make_variant

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
PATIENCE = 240  # seconds for one step on a busy machine
NAME = 'photos/<b>"1"</b> & $x$.jpg'

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser on this machine: {', '.join(BROWSERS)}")
expect.set_options(timeout=1000 * PATIENCE)


class Lab:
    """JupyterLab on loopback with a token, in a folder that has what the notebook needs, and a page of a browser."""

    def __init__(self, folder: Path, page: Page):
        self.folder, self.page, self.upload_path = folder, page, None
        page.on("filechooser", lambda chooser: chooser.set_files(self.upload_path))
        names = "JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "JUPYTERLAB_SETTINGS", "JUPYTERLAB_WORKSPACES"
        homes = {f"{name}_DIR": str(folder / "jupyter" / name.lower()) for name in names}
        self.runtime = Path(homes["JUPYTER_RUNTIME_DIR"])
        options = ["--ip=127.0.0.1", "--no-browser", "--allow-root"]
        options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # asks no registry
        with (folder / "lab.log").open("w") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options, "notebooks"],
                cwd=folder,
                env=os.environ | homes | {"IPYTHONDIR": str(folder / "jupyter"), "PYTHONPATH": str(folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def open(self) -> None:
        """Open the notebook as a reader finds it."""
        running = self.address()
        self.page.goto(f"{running['url']}lab/tree/explore.ipynb?reset&token={running['token']}")
        self.page.get_by_role("heading", name="Explore: which photos").wait_for()
        expect(self.page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle")

    def address(self) -> dict:
        """Wait for the file with the address that the server writes once it listens."""
        for _ in range(10 * PATIENCE):
            for path in self.runtime.glob("jpserver-*.json"):
                if text := path.read_text():
                    return json.loads(text)
            assert self.server.poll() is None, (self.folder / "lab.log").read_text()
            time.sleep(0.1)
        raise TimeoutError((self.folder / "lab.log").read_text())

    def run_all(self) -> None:
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def put_index(self, present: bool) -> None:
        shutil.rmtree(self.folder / "data" / "index", ignore_errors=True)
        if present:
            shutil.copytree(self.folder / "built", self.folder / "data" / "index")

    def message(self, role: str) -> Locator:
        return self.page.locator(f".jp-OutputArea [role={role}]")

    def alts(self) -> list[str]:
        return [image.get_attribute("alt") for image in self.page.locator(".jp-OutputArea figure img").all()]

    def focus(self) -> tuple[str, str]:
        """Return the label and the value of the focused control."""
        script = "(({labels, innerText, value}) => [labels?.[0]?.innerText ?? innerText, value])"
        return tuple(self.page.evaluate(f"{script}(document.activeElement)"))

    def upload(self, path: Path) -> None:
        self.upload_path = path
        self.page.get_by_role("button", name="or upload one").focus()
        self.page.keyboard.press("Enter")

    def stop(self) -> None:
        """Stop the server with SIGTERM, so that it stops its kernels; kill it if it does not."""
        self.server.terminate()
        try:
            self.server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()


def build_folder(folder: Path) -> None:
    """Write prepared images, and an index of them in `built` by an untrained M3-Net."""
    prepared, home, weights = make_stripes(), folder / "data" / "prepared", folder / "m3.safetensors"
    subsets = list(islice(cycle(manifest.LABELLED), len(prepared.manifest)))
    table = prepared.manifest.assign(split=[split for split, _ in subsets], role=[role for _, role in subsets])
    table.loc[1, "image"] = NAME
    home.mkdir(parents=True)
    manifest.save(manifest.Source(STRIPES, table, load=None), home)
    np.save(home / "images.npy", prepared.images)
    trainer.make_deterministic(0, 1)
    variant = make_variant("m3")
    checkpoint.save_tensors(weights, systems.build(variant, STRIPES).state_dict())
    images = replace(SETTINGS.images, height=SIDE, width=SIDE, format="raw")
    settings = config.Index(variant="m3", images="all", kind="auto")
    build.build(folder / "built", manifest.open_prepared(home), weights, variant, images, settings, 0, 1)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "m3lib", folder / "m3lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("notebooks/explore.ipynb", "dvc.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    build_folder(folder)
    with sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=BROWSER).new_page(viewport={"width": 1200, "height": 1300})
        page.set_default_timeout(1000 * PATIENCE)
        lab = Lab(folder, page)
        try:
            yield lab
        finally:
            lab.stop()


def expected(lab, name, attribute, classes=()):
    """The alternative texts that the page should show, computed by a search in this process."""
    matches = Index.open(lab.folder / "built").search(name, attribute=attribute, classes=classes, k=11)
    others = [match for match in matches if match.path != name][:10]
    attention = f"attention to {attribute}"
    results = [f"result {i}, {match.path}" for i, match in enumerate(others, 1)]
    return [f"the query, {name}", attention, f"{attention}: {others[0].class_}", *results]


def test_by_keyboard_from_no_index_to_results(lab):
    lab.put_index(False)
    lab.open()
    lab.run_all()
    expect(lab.message("alert")).to_contain_text("run `dvc repro index`")
    expect(lab.page.locator(".jp-OutputArea [data-mime-type*=error]")).to_have_count(0)

    lab.put_index(True)
    lab.run_all()
    expect(lab.message("status")).to_have_text("10 photos like 000.jpg by colour, the most similar first.")
    assert lab.alts() == expected(lab, "000.jpg", "colour")

    press = lab.page.keyboard.press
    cells = lab.page.locator(".jp-Notebook-cell").count()
    lab.page.get_by_label("Photo (1 to 72)").focus()
    press("ArrowUp")
    expect(lab.page.get_by_label("or its name")).to_have_value(NAME)
    expect(lab.message("status")).to_have_text(f"10 photos like {NAME} by colour, the most similar first.")
    assert lab.alts() == expected(lab, NAME, "colour")
    press("Tab")
    lab.page.keyboard.type("005.jpg")  # replaces the text that Tab selected
    press("Enter")
    expect(lab.page.get_by_label("Photo (1 to 72)")).to_have_value("6")
    press("Tab")
    assert lab.focus()[0].startswith("or upload one")
    press("d")
    press("d")  # JupyterLab's way to delete a cell
    press("Tab")
    press("ArrowDown")
    assert lab.focus() == ("Attribute", "stripes")
    expect(lab.message("status")).to_have_text("10 photos like 005.jpg by stripes, the most similar first.")
    assert lab.alts() == expected(lab, "005.jpg", "stripes")
    expect(lab.page.get_by_label("Class").locator("option")).to_have_text(["any", "across", "down"])
    press("Tab")
    press("ArrowDown")
    expect(lab.page.get_by_label("Class")).to_have_value("across")
    assert lab.focus() == ("Class", "across")
    expect(lab.message("status")).to_have_text("10 photos like 005.jpg by stripes: across, the most similar first.")
    assert lab.alts() == expected(lab, "005.jpg", "stripes", classes=["across"])
    press("Tab")
    assert lab.focus() == ("Results (1 to 60)", "10")
    press("ArrowDown")
    expect(lab.message("status")).to_have_text("9 photos like 005.jpg by stripes: across, the most similar first.")
    assert lab.page.locator(".jp-Notebook-cell").count() == cells


def test_uploads_and_mistakes(lab, tmp_path):
    lab.put_index(True)
    lab.open()
    lab.run_all()
    expect(lab.message("status")).to_contain_text("10 photos")
    name = lab.page.get_by_label("or its name")
    name.fill("5.jpg")
    name.press("Enter")
    expect(lab.message("alert")).to_contain_text(
        "no photo of the index is named '5.jpg'; write the full name, such as '005"
    )
    expect(lab.page.locator(".jp-OutputArea figure")).to_have_count(0)
    (tmp_path / "<i>.jpg").write_bytes(b"no photo")
    lab.upload(tmp_path / "<i>.jpg")
    expect(lab.message("alert")).to_contain_text("'<i>.jpg': a text file, not a photo: download it again; upload")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)).save(tmp_path / "mine.png")
    lab.upload(tmp_path / "mine.png")
    expect(lab.message("status")).to_contain_text("10 photos like mine.png")
    assert lab.alts()[0] == "the query, mine.png"
    assert len(lab.alts()) == 1 + 2 + 10

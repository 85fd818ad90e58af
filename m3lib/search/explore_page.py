"""The page of notebooks/explore.ipynb: choose a photo, an attribute and a class; see similar photos and the attention.

Every control is a native one with a label, in the order in which a reader fills them in, so that the keyboard reaches
all of them. File names may hold anything, so every text is escaped before it becomes HTML.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from IPython.display import Javascript, display
from ipywidgets import HTML, BoundedIntText, Box, Dropdown, FileUpload, Layout, Text, VBox, Widget
from PIL import Image

from m3lib.data import manifest
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.figures import panels
from m3lib.prepare import photos
from m3lib.search.index import Index, Match

MAX_RESULTS = 60
UPLOAD_LABEL = "or upload one (at most 10 MB)"  # Jupyter's server drops larger messages without a word
NO_MATHJAX = 'class="tex2jax_ignore mathjax_ignore"'  # a `$` in a name starts no formula
# JupyterLab takes arrow keys, Enter and letters as shortcuts (`d d` deletes the cell), except in a control with this
# mark, which each control gets when it receives the focus. The script runs before the output is part of the document.
KEEP_KEYS = """
(function listen() {
  if (!element.isConnected) setTimeout(listen, 50);
  else element.closest(".jp-OutputArea")?.addEventListener(
    "focusin", (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "true"));
})();
"""


def show_page(root: Path, folder: str) -> None:
    """Display the page below the cell."""
    display(open_page(root, folder), Javascript(KEEP_KEYS))


def open_page(root: Path, folder: str) -> Box | HTML:
    """Return the page of an index folder (relative to the root), or a sentence that says what is missing."""
    try:
        index = Index.open(root / folder)
        prepared = manifest.open_prepared(root / "data" / "prepared")
        index.check(prepared)
    except InputError as error:
        return HTML(alert(error))
    return ExplorePage(index, prepared).box


class ExplorePage:
    """The controls, and below them a line of text and the images."""

    def __init__(self, index: Index, prepared: Prepared):
        self.index, self.prepared = index, prepared
        self.numbers = {name: i for i, name in enumerate(index.images, 1)}
        self.number = bounded_number("Photo", 1, len(index.images))
        self.name = Text(index.images[0], description="or its name", continuous_update=False)
        self.upload = FileUpload(accept="image/*", multiple=False, description=UPLOAD_LABEL, tooltip="")
        self.attribute = Dropdown(options=index.attributes, description="Attribute")
        self.class_ = Dropdown(options=class_options(index, index.attributes[0]), description="Class")
        self.count = bounded_number("Results", 10, max(1, min(MAX_RESULTS, len(index.images) - 1)))
        self.message, self.results = HTML(), HTML()
        self.number.observe(self.on_number, "value")
        self.name.observe(self.on_name, "value")
        self.attribute.observe(self.on_attribute, "value")
        for control in (self.upload, self.class_, self.count):
            control.observe(self.update, "value")
        photo, question = (self.number, self.name, self.upload), (self.attribute, self.class_, self.count)
        self.box = VBox([control_row(photo), control_row(question), self.message, self.results])
        self.update()

    def on_number(self, change: dict) -> None:
        self.name.value = self.index.images[change["new"] - 1]

    def on_name(self, change: dict) -> None:
        """Replace an upload by the named photo."""
        self.upload.value = ()
        self.number.value = self.numbers.get(change["new"], self.number.value)
        self.update()

    def on_attribute(self, _: dict) -> None:
        self.class_.options = class_options(self.index, self.attribute.value)
        self.update()

    def update(self, _: dict | None = None) -> None:
        """Search and show the results, or a sentence on what was wrong with the input."""
        try:
            title, image = self.query()
            attribute, class_ = self.attribute.value, self.class_.value
            matches = self.search(title, image, attribute, [class_] if class_ else [])
            maps = self.index.attention_maps(image, attribute, class_ or matches[0].class_)
        except InputError as error:
            self.results.value, self.message.value = "", alert(error)
            return
        queries, results = [figure(image, f"the query, {title}", "the query", title)], []
        for name, level in maps.items():
            queries.append(figure(panels.overlay(image, level), f"attention to {name}", f"attention to {name}"))
        for i, match in enumerate(matches, 1):
            caption = f"{i}. {match.class_}, {match.score:.3f}" if match.class_ else f"{i}. {match.score:.3f}"
            result = self.prepared.images[match.row]
            results.append(figure(result, f"result {i}, {match.path}", caption, match.path))
        self.results.value = figure_row(queries) + figure_row(results)
        goal = f"{attribute}: {class_}" if class_ else attribute
        text = f"{len(results)} photos like {title} by {goal}, the most similar first."
        self.message.value = f'<p role="status" {NO_MATHJAX} style="line-height: 1.4">{escape(text)}</p>'

    def query(self) -> tuple[str, np.ndarray]:
        """The name of the uploaded or named photo, and its image (H, W, 3) as the network sees it."""
        if self.upload.value:
            [file] = self.upload.value
            return file["name"], self.index.read(read_upload(file["name"], file["content"]))
        name = self.name.value
        if name not in self.numbers:
            close = [other for other in self.numbers if name.lower() in other.lower()] or self.index.images
            examples = ", ".join(map(repr, close[:3]))
            raise InputError(f"no photo of the index is named {name!r}; write the full name, such as {examples}")
        return name, self.prepared.images[self.index.catalogue.rows[self.numbers[name] - 1]]

    def search(self, title: str, image: np.ndarray, attribute: str, classes: list[str]) -> list[Match]:
        """Search without the query among the results: an image of the index finds itself too."""
        k = self.count.value
        if self.upload.value:
            return self.index.search(image, attribute, classes, k)
        return [match for match in self.index.search(title, attribute, classes, k + 1) if match.path != title][:k]


def class_options(index: Index, attribute: str) -> list[tuple[str, str]]:
    return [("any", ""), *((name, name) for name in index.classes(attribute))]


def bounded_number(label: str, value: int, largest: int) -> BoundedIntText:
    return BoundedIntText(value, min=1, max=largest, description=f"{label} (1 to {largest})", continuous_update=False)


def control_row(controls: Sequence[Widget]) -> Box:
    for control in controls:
        control.style.description_width, control.layout.width = "initial", "auto"
    return Box(controls, layout=Layout(flex_flow="row wrap", align_items="center", grid_gap="0 1em"))


def read_upload(name: str, content: memoryview) -> np.ndarray:
    """(h, w, 3) uint8 of an uploaded photo; raises InputError that names the file as the reader knows it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "photo"
        path.write_bytes(content)
        try:
            return photos.decode(path)
        except InputError as error:
            problem = str(error).replace(repr(str(path)), repr(name))
            raise InputError(f"{problem}; upload another photo") from None


def alert(error: InputError) -> str:
    return f'<p role="alert" {NO_MATHJAX} style="line-height: 1.4"><b>Not possible:</b> {escape(str(error))}</p>'


def figure_row(figures: Sequence[str]) -> str:
    style = "display: flex; flex-wrap: wrap; gap: 1em; margin-bottom: 1em"
    return f'<div {NO_MATHJAX} style="{style}">{"".join(figures)}</div>'


def figure(image: np.ndarray, alt: str, *lines: str) -> str:
    """Return an image, with its alternative text, and lines of text below it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    below = "<br>".join(map(escape, lines))
    return (
        '<figure style="width: 9em; margin: 0; line-height: 1.3; overflow-wrap: anywhere">'
        f'<img src="{source}" alt="{escape(alt)}" style="width: 100%"><figcaption>{below}</figcaption></figure>'
    )

"""The page of notebooks/explore.ipynb: choose a photo, an attribute and a class; see similar photos and the attention.

Every control is a native one with a label, in the order in which a reader fills them in, so that the keyboard reaches
all of them. File names may hold anything, so every text is escaped before it becomes HTML.
"""

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from IPython.display import Javascript, display
from ipywidgets import HTML, BoundedIntText, Box, Dropdown, FileUpload, Layout, Text, VBox, dlink

from m3lib.data import manifest, store
from m3lib.errors import InputError
from m3lib.figures import panels
from m3lib.prepare import photos
from m3lib.search.index import Index

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
    """Display the page of an index folder (relative to the root), or a sentence that says what is missing."""
    try:
        index = Index.open(root / folder)
        prepared = manifest.open_prepared(root / "data" / "prepared")
        index.check(prepared)
        page = ExplorePage(index, prepared).box
    except InputError as error:
        page = HTML(paragraph("alert", f"Not possible: {error}"))
    display(page, Javascript(KEEP_KEYS))


class ExplorePage:
    """The controls, and below them a line of text and the images."""

    def __init__(self, index: Index, prepared: manifest.Prepared):
        self.index, self.prepared = index, prepared
        rows = index.rows
        self.images = [name for name, row in zip(index.images, rows, strict=True) if row >= 0]  # those with pixels
        self.rows = rows[rows >= 0]
        self.numbers = {name: i for i, name in enumerate(self.images, 1)}
        size, most = len(self.images), max(1, min(MAX_RESULTS, len(self.images) - 1))
        self.number = BoundedIntText(1, min=1, max=size, description=f"Photo (1 to {size})", continuous_update=False)
        self.name = Text(description="or its name", continuous_update=False)
        self.upload = FileUpload(accept="image/*", multiple=False, description=UPLOAD_LABEL, tooltip="")
        self.attribute = Dropdown(options=index.attributes, description="Attribute")
        self.class_ = Dropdown(options=self.class_options(), description="Class")
        self.count = BoundedIntText(10, min=1, max=most, description=f"Results (1 to {most})", continuous_update=False)
        self.message, self.results = HTML(), HTML()
        lines = (self.number, self.name, self.upload), (self.attribute, self.class_, self.count)
        for control in lines[0] + lines[1]:
            control.style.description_width, control.layout.width = "initial", "auto"
        layout = Layout(flex_flow="row wrap", align_items="center", grid_gap="0 1em")
        self.box = VBox([*(Box(row, layout=layout) for row in lines), self.message, self.results])
        dlink((self.number, "value"), (self.name, "value"), lambda number: self.images[number - 1])
        self.name.observe(self.on_name, "value")
        self.attribute.observe(self.on_attribute, "value")
        for control in (self.upload, self.class_, self.count):
            control.observe(self.update, "value")
        self.update()

    def class_options(self) -> list[tuple[str, str]]:
        return [("any", ""), *((name, name) for name in self.index.classes(self.attribute.value))]

    def on_attribute(self, _: dict) -> None:
        self.class_.options = self.class_options()
        self.update()

    def on_name(self, change: dict) -> None:
        """Replace an upload by the named photo."""
        self.upload.value = ()
        self.number.value = self.numbers.get(change["new"], self.number.value)
        self.update()

    def update(self, _: dict | None = None) -> None:
        """Show the results of a search, or a sentence on what was wrong with the input."""
        try:
            self.results.value, self.message.value = self.search()
        except InputError as error:
            self.results.value, self.message.value = "", paragraph("alert", f"Not possible: {error}")

    def search(self) -> tuple[str, str]:
        """Return the images and the line of text, as HTML."""
        title, image, row = self.query()
        attribute, class_, k = self.attribute.value, self.class_.value, self.count.value
        query, most = (image if row is None else row), min(k + 1, len(self.images))
        found = self.index.search(query, attribute, class_ or (), most)
        matches = [match for match in found if match.row not in (row, None)][:k]  # an image finds itself too
        shown_class = class_ or (matches or found)[0].class_
        queries, results = [figure(image, f"the query, {title}", "the query", title)], []
        for name, level in self.index.attention_maps(image, attribute, shown_class).items():
            queries.append(figure(panels.overlay(image, level), f"attention to {name}", f"attention to {name}"))
        for i, match in enumerate(matches, 1):
            caption = f"{i}. {match.class_}, {match.score:.3f}" if match.class_ else f"{i}. {match.score:.3f}"
            result = self.prepared.images[match.row]
            results.append(figure(result, f"result {i}, {match.path}", caption, match.path))
        goal = f"{attribute}: {class_}" if class_ else attribute
        text = f"{len(results)} photos like {title} by {goal}, the most similar first."
        style = "display: flex; flex-wrap: wrap; gap: 1em; margin-bottom: 1em"
        rows = (f'<div {NO_MATHJAX} style="{style}">{"".join(figures)}</div>' for figures in (queries, results))
        return "".join(rows), paragraph("status", text)

    def query(self) -> tuple[str, np.ndarray, int | None]:
        """The uploaded or named photo: its name, its image (H, W, 3) as the network sees it, its manifest row."""
        if self.upload.value:
            [upload] = self.upload.value
            try:
                photo = photos.decode(io.BytesIO(upload["content"]), upload["name"])
                return upload["name"], self.index.read(photo), None
            except InputError as error:
                raise InputError(f"{error}; upload another photo") from None
        name = self.name.value
        if name not in self.numbers:
            close = [other for other in self.numbers if name.lower() in other.lower()] or self.images
            examples = ", ".join(map(repr, close[:3]))
            raise InputError(f"no photo of the index is named {name!r}; write the full name, such as {examples}")
        row = int(self.rows[self.numbers[name] - 1])
        return name, self.prepared.images[row], row


def paragraph(role: str, text: str) -> str:
    return f'<p role="{role}" {NO_MATHJAX} style="line-height: 1.4">{escape(text)}</p>'


def figure(image: np.ndarray, alt: str, *lines: str) -> str:
    """Return an image, with its alternative text, and lines of text below it."""
    source = f"data:image/jpeg;base64,{base64.b64encode(store.encode(image, 'jpeg')).decode()}"
    below = "<br>".join(map(escape, lines))
    return (
        '<figure style="width: 9em; margin: 0; line-height: 1.3; overflow-wrap: anywhere">'
        f'<img src="{source}" alt="{escape(alt)}" style="width: 100%"><figcaption>{below}</figcaption></figure>'
    )

"""The page of notebooks/explore.ipynb: a photo, an attribute and a class in; what is found, and where it looked, out.

Every control is a native one with a label, in the order in which one fills them in, so that the keyboard reaches all.
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
from m3lib.figures import charts
from m3lib.prepare import photos
from m3lib.search.index import Index, Match

MOST = 60  # results on one page
UPLOAD = "10 MB"  # Jupyter's server takes no larger message, and tells nobody
WIDTH = "9em"  # of a picture
AS_IT_IS = 'class="tex2jax_ignore mathjax_ignore"'  # a `$` in a name is no formula
LINES = 'style="line-height: 1.4"'
KEEP_KEYS = """
(function listen() {  // JupyterLab runs this before the output is part of the document
  if (!element.isConnected) setTimeout(listen, 50);
  else element.closest(".jp-OutputArea")?.addEventListener(
    "focusin", (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "true"));
})();
"""


def show_page(root: Path, folder: str) -> None:
    """Display the page below the cell.

    JupyterLab takes arrow keys, Enter and letters for itself (from a button, `d d` deletes the cell), but for a
    control that carries a mark: each is given it here as the focus comes to it.
    """
    display(open_page(root, folder), Javascript(KEEP_KEYS))


def open_page(root: Path, folder: str) -> Box | HTML:
    """The page on an index, or one sentence that says what is missing and what to do.

    root: the repository's; folder: what the stage `index` wrote, relative to it.
    """
    try:
        index = Index.open(root / folder)
        prepared = manifest.open_prepared(root / "data" / "prepared")
        index.check(prepared)
    except InputError as error:
        return HTML(notice(error))
    return Page(index, prepared).box


class Page:
    """The controls, and below them a line that speaks and the pictures."""

    def __init__(self, index: Index, prepared: Prepared):
        self.index, self.prepared = index, prepared
        self.place = {name: i for i, name in enumerate(index.images, 1)}
        self.row = {name: row for row, name in enumerate(prepared.manifest["image"])}
        self.number = number("Photo", 1, len(index.images))
        self.name = Text(index.images[0], description="or its name", continuous_update=False)
        self.upload = FileUpload(
            accept="image/*", multiple=False, description=f"or upload one (at most {UPLOAD})", tooltip=""
        )
        self.attribute = Dropdown(options=index.attributes, description="Attribute")
        self.class_ = Dropdown(options=self.classes(), description="Class")
        self.count = number("Results", 10, max(1, min(MOST, len(index.images) - 1)))
        self.message, self.pictures = HTML(), HTML()
        self.number.observe(self.step, "value")
        self.name.observe(self.jump, "value")
        self.attribute.observe(self.ask, "value")
        for control in (self.upload, self.class_, self.count):
            control.observe(self.show, "value")
        photo, wish = (self.number, self.name, self.upload), (self.attribute, self.class_, self.count)
        self.box = VBox([row(photo), row(wish), self.message, self.pictures])
        self.show()

    def classes(self) -> list[tuple[str, str]]:
        return [("any", ""), *((name, name) for name in self.index.classes(self.attribute.value))]

    def step(self, change: dict) -> None:
        self.name.value = self.index.images[change["new"] - 1]

    def jump(self, change: dict) -> None:
        """A name typed or stepped to takes the place of an upload."""
        self.upload.value = ()
        self.number.value = self.place.get(change["new"], self.number.value)
        self.show()

    def ask(self, _: dict) -> None:
        self.class_.options = self.classes()
        self.show()

    def show(self, _: dict | None = None) -> None:
        """Search and draw; what a person got wrong is said in place of the pictures."""
        try:
            title, picture = self.query()
            attribute, class_ = self.attribute.value, self.class_.value
            matches = self.matches(title, picture, attribute, [class_] if class_ else [])
            looks = self.looks(picture, attribute, class_ or matches[0].class_)
        except InputError as error:
            self.pictures.value, self.message.value = "", notice(error)
            return
        shown = [figure(picture, f"the query, {title}", "the query", title)]
        shown += [figure(charts.overlay(picture, level), text, text) for text, level in looks]
        found = [
            figure(self.prepared.images[match.row], f"result {place}, {match.path}", caption(place, match), match.path)
            for place, match in enumerate(matches, 1)
        ]
        wanted = f"{attribute}: {class_}" if class_ else attribute
        self.pictures.value = pictures_in_a_row(shown) + pictures_in_a_row(found)
        self.message.value = status(f"{len(found)} photos like {title} by {wanted}, the most alike first.")

    def query(self) -> tuple[str, np.ndarray]:
        """The name of what was uploaded or chosen, and its picture (H, W, 3) as the network sees it."""
        if self.upload.value:
            [file] = self.upload.value
            return file["name"], self.index.read(read_upload(file["name"], file["content"]))
        name = self.name.value
        if name not in self.place:
            close = [known for known in self.place if name.lower() in known.lower()] or self.index.images
            told = ", ".join(map(repr, close[:3]))
            raise InputError(f"no photo of the index is named {name!r}; write a whole name, such as {told}")
        return name, self.prepared.images[self.row[name]]

    def matches(self, title: str, picture: np.ndarray, attribute: str, classes: list[str]) -> list[Match]:
        """What the index finds; a query out of the index finds itself too, and that is left out."""
        own = None if self.upload.value else title
        image, k = (picture, self.count.value) if own is None else (own, self.count.value + 1)
        found = self.index.search(image, attribute=attribute, classes=classes, k=k)
        return [match for match in found if match.path != own][: self.count.value]

    def looks(self, picture: np.ndarray, attribute: str, class_: str | None) -> list[tuple[str, np.ndarray]]:
        """A caption and a map (H, W) each: of the attribute and of one of its classes, where the network has them."""
        maps = self.index.look(picture, attribute)
        found = [(f"where it looks for {attribute}", maps["attribute"])] if "attribute" in maps else []
        level = maps.get("classes", {}).get(class_)
        return found if level is None else [*found, (f"where it looks for {attribute}: {class_}", level)]


def number(label: str, value: int, most: int) -> BoundedIntText:
    return BoundedIntText(value, min=1, max=most, description=f"{label} (1 to {most})", continuous_update=False)


def read_upload(name: str, content: memoryview) -> np.ndarray:
    """(h, w, 3) uint8 of an uploaded photo; raises InputError with the name that it has at home."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "photo"
        path.write_bytes(content)
        try:
            return photos.decode(path)
        except InputError as error:
            problem = str(error).replace(repr(str(path)), repr(name))
            raise InputError(f"{problem}; upload another photo") from None


def notice(error: InputError) -> str:
    return f'<p role="alert" {AS_IT_IS} {LINES}><b>Not possible:</b> {escape(str(error))}</p>'


def status(text: str) -> str:
    return f'<p role="status" {AS_IT_IS} {LINES}>{escape(text)}</p>'


def caption(place: int, match: Match) -> str:
    return f"{place}. {match.class_}, {match.score:.3f}" if match.class_ else f"{place}. {match.score:.3f}"


def row(controls: Sequence[Widget]) -> Box:
    for control in controls:
        control.style.description_width, control.layout.width = "initial", "auto"
    return Box(controls, layout=Layout(flex_flow="row wrap", align_items="center", grid_gap="0 1em"))


def pictures_in_a_row(shown: Sequence[str]) -> str:
    return (
        f'<div {AS_IT_IS} style="display: flex; flex-wrap: wrap; gap: 1em; margin-bottom: 1em">{"".join(shown)}</div>'
    )


def figure(picture: np.ndarray, alt: str, *lines: str) -> str:
    """A picture and lines below it; file names may hold anything, so every text is escaped."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    below = "<br>".join(map(escape, lines))
    return (
        f'<figure style="width: {WIDTH}; margin: 0; line-height: 1.3; overflow-wrap: anywhere">'
        f'<img src="{source}" alt="{escape(alt)}" style="width: 100%"><figcaption>{below}</figcaption></figure>'
    )

"""The page of notebooks/explore.ipynb with a stand-in for the index."""

from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np

from m3lib.data import store
from m3lib.search import explore_page
from m3lib.search.index import Match
from tiny import TAXONOMY, make_prepared, random_labels

NASTY = '<img src=x onerror="alert(1)">\'&amp;"\n$x$.jpg'
SIDE = 8
JPEG = store.encode(np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8), "jpeg")


class FakeIndex:
    """An index of every second image of a prepared set: ranks the query first, then by row, and records its calls."""

    def __init__(self, prepared, maps=True):
        self.rows = list(range(0, len(prepared.manifest), 2))
        self.images = prepared.manifest["image"].iloc[self.rows].tolist()
        self.attributes, self.maps, self.calls = TAXONOMY.names, maps, []
        self.catalogue = SimpleNamespace(rows=self.rows)

    def classes(self, attribute):
        return list(TAXONOMY.attributes[self.attributes.index(attribute)].classes)

    def read(self, image):
        return image[:SIDE, :SIDE]

    def search(self, image, attribute, classes=(), k=10):
        self.calls.append((image, attribute, classes, k))
        assert k <= len(self.images)
        by_name = isinstance(image, str)
        order = sorted(range(len(self.images)), key=lambda i: (by_name and self.images[i] != image, i))
        names = ([classes] if classes else self.classes(attribute)) if self.maps else [None]
        return [
            Match(self.images[i], 1 / (rank + 2), names[min(rank, len(names) - 1)], self.rows[i])
            for rank, i in enumerate(order[:k])
        ]

    def attention_maps(self, image, attribute, class_):
        return dict.fromkeys((attribute, f"{attribute}: {class_}"), np.ones((SIDE, SIDE))) if self.maps else {}


def make_page(maps=True, name="000.jpg"):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, SIDE, SIDE, 3), dtype=np.uint8)
    prepared = make_prepared(random_labels("single", 24, rng), [("test", "query")] * 24, images)
    prepared.manifest.loc[0, "image"] = name
    index = FakeIndex(prepared, maps)
    return explore_page.ExplorePage(index, prepared), index


class Reader(HTMLParser):
    """Parse HTML: the alternative texts of its images, all tags, and the text."""

    def __init__(self, text):
        super().__init__()
        self.alt, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.alt.append(dict(attrs)["alt"])

    def handle_data(self, data):
        self.text += data


def shown(page):
    return Reader(page.results.value)


def message(page):
    return Reader(page.message.value).text


def upload(page, name, content):
    """Send what the browser sends for an upload."""
    file = {"name": name, "type": "", "size": len(content), "last_modified": 0, "content": memoryview(content)}
    page.upload.set_state({"value": [file]})


def test_the_query_its_two_maps_and_the_results_without_the_query():
    page, index = make_page()
    assert index.calls == [("000.jpg", "colour", (), 11)]
    attention = ["attention to colour", "attention to colour: green"]  # the class of the best match
    results = [f"result {i}, {2 * i:03}.jpg" for i in range(1, 11)]
    assert shown(page).alt == ["the query, 000.jpg", *attention, *results]
    assert "1. green, 0.333" in shown(page).text
    assert message(page) == "10 photos like 000.jpg by colour, the most similar first."


def test_every_control_starts_a_new_search():
    page, index = make_page()
    page.number.value = 3
    assert (page.name.value, index.calls[-1][0]) == ("004.jpg", "004.jpg")
    page.name.value = "010.jpg"
    assert (page.number.value, index.calls[-1][0]) == (6, "010.jpg")
    page.attribute.value = "details"
    assert index.calls[-1] == ("010.jpg", "details", (), 11)
    assert page.class_.options == (("any", ""), *((name, name) for name in ("pocket", "collar", "belt", "hood")))
    page.class_.value = "belt"
    assert index.calls[-1] == ("010.jpg", "details", "belt", 11)
    assert shown(page).alt[2] == "attention to details: belt"
    page.count.value = 4
    assert index.calls[-1][3] == 5
    assert len(shown(page).alt) == 3 + 4
    page.attribute.value = "sleeve"  # which has no belt
    assert index.calls[-1] == ("010.jpg", "sleeve", (), 5)


def test_an_upload_is_searched_until_a_name_is_given():
    page, index = make_page()
    upload(page, "mine.png", JPEG)
    image, *rest = index.calls[-1]
    assert image.shape == (SIDE, SIDE, 3)  # as the index reads it
    assert rest == ["colour", (), 11]
    assert shown(page).alt[0] == "the query, mine.png"
    assert shown(page).alt[3] == "result 1, 000.jpg"  # the name in the text box is not the query, so it is not left out
    page.number.value = 2
    assert index.calls[-1][0] == "002.jpg"
    assert page.upload.value == ()


def test_after_a_mistake_the_page_shows_one_sentence_and_works_on():
    page, _ = make_page(name=NASTY)
    page.name.value = "0<b>"
    assert "'0<b>'" in message(page)
    assert page.results.value == ""
    page.name.value = "04"
    assert message(page).endswith("no photo of the index is named '04'; write the full name, such as '004.jpg'")
    upload(page, f"{NASTY}.png", JPEG[:200])
    assert Reader(page.message.value).tags == ["p"]
    assert repr(f"{NASTY}.png") in message(page)
    assert "BytesIO" not in message(page)
    upload(page, "text.txt", b"no photo")
    assert "'text.txt': not a photo in a known format" in message(page)
    page.name.value = "004.jpg"
    assert message(page).startswith("10 photos")


def test_a_network_without_attention_or_class_probabilities():
    page, _ = make_page(maps=False)
    assert shown(page).alt[:2] == ["the query, 000.jpg", "result 1, 002.jpg"]
    assert "1. 0.333" in shown(page).text


def test_a_name_may_hold_anything():
    page, _ = make_page(name=NASTY)
    assert shown(page).alt[0] == f"the query, {NASTY}"
    assert NASTY in shown(page).text
    assert set(shown(page).tags) == {"div", "figure", "img", "figcaption", "br"}
    assert page.results.value.count("mathjax_ignore") == page.results.value.count("<div")
    page.name.value = "004.jpg"
    assert shown(page).alt[3] == f"result 1, {NASTY}"


def test_every_control_has_a_label():
    page, _ = make_page()
    controls = [control for row in page.box.children[:2] for control in row.children]
    assert controls == [page.number, page.name, page.upload, page.attribute, page.class_, page.count]
    assert all(control.description for control in controls)


def test_a_missing_index_is_one_sentence(tmp_path, monkeypatch):
    displayed = []
    monkeypatch.setattr(explore_page, "display", lambda *objects: displayed.extend(objects))
    explore_page.show_page(tmp_path, "data/index")
    assert Reader(displayed[0].value).text.startswith(f"Not possible: there is no search index in {tmp_path}")

"""The page of notebooks/explore.ipynb on a small index."""

import re
from html import unescape

import numpy as np
import pytest

from catalogues import SIDE, build_index, noise_images
from m3lib.data import store
from m3lib.search import explore_page

NASTY = '<img src=x onerror="alert(1)">\'&amp;"\n$x$.jpg'
JPEG = store.encode(np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8), "jpeg")


def test_a_photo_that_was_added_is_no_result_since_its_pixels_are_not_prepared(tmp_path):
    prepared = noise_images(12)
    index = build_index(tmp_path, prepared, "m3", "concat", engine="lancedb")
    index.add(prepared.images[0], "added.jpg")  # the most similar to the first
    page = explore_page.ExplorePage(index, prepared)
    assert page.number.max == 12
    assert page.number.value == 1
    assert len(alts(page)) == 3 + 9  # the query, two maps, and ten results less the added photo
    assert "added.jpg" not in page.results.value


class RecordingIndex:
    """An index that records its searches."""

    def __init__(self, index):
        self.index, self.calls = index, []

    def __getattr__(self, name):
        return getattr(self.index, name)

    def search(self, *arguments):
        self.calls.append(arguments)
        return self.index.search(*arguments)


@pytest.fixture
def make_page(tmp_path):
    def make(network="m3", name="000.jpg", size=24):
        prepared = noise_images(size)
        prepared.manifest.loc[0, "image"] = name
        index = RecordingIndex(build_index(tmp_path, prepared, network))
        return explore_page.ExplorePage(index, prepared), index

    return make


def alts(page):
    """The alternative texts of the images."""
    return [unescape(alt) for alt in re.findall(r'<img [^>]* alt="([^"]*)"', page.results.value)]


def text(html):
    return unescape(re.sub("<[^>]*>", "", html))


def upload(page, name, content):
    """Send what the browser sends for an upload."""
    file = {"name": name, "type": "", "size": len(content), "last_modified": 0, "content": memoryview(content)}
    page.upload.set_state({"value": [file]})


def test_the_query_its_two_maps_and_the_results_without_the_query(make_page):
    page, index = make_page()
    assert index.calls == [(0, "colour", (), 11)]
    matches = [match for match in index.search("000.jpg", "colour", (), 24) if match.path != "000.jpg"][:10]
    attention = ["attention to colour", f"attention to colour: {matches[0].class_}"]
    assert alts(page) == [
        "the query, 000.jpg",
        *attention,
        *(f"result {i}, {m.path}" for i, m in enumerate(matches, 1)),
    ]
    assert f"1. {matches[0].class_}, {matches[0].score:.3f}" in text(page.results.value)
    assert text(page.message.value) == "10 photos like 000.jpg by colour, the most similar first."


def test_every_control_starts_a_new_search(make_page):
    page, index = make_page()
    page.number.value = 3
    assert (page.name.value, index.calls[-1][0]) == ("002.jpg", 2)
    page.name.value = "010.jpg"
    assert (page.number.value, index.calls[-1][0]) == (11, 10)
    page.attribute.value = "details"
    assert index.calls[-1] == (10, "details", (), 11)
    assert page.class_.options == (("any", ""), *((name, name) for name in ("pocket", "collar", "belt", "hood")))
    page.class_.value = "belt"
    assert index.calls[-1] == (10, "details", "belt", 11)
    assert alts(page)[2] == "attention to details: belt"
    page.count.value = 4
    assert index.calls[-1][3] == 5
    assert len(alts(page)) == 3 + 4
    page.attribute.value = "sleeve"  # which has no belt
    assert index.calls[-1] == (10, "sleeve", (), 5)


def test_an_upload_is_searched_until_a_name_is_given(make_page):
    page, index = make_page()
    upload(page, "000.jpg", JPEG)
    image, *rest = index.calls[-1]
    assert image.shape == (SIDE, SIDE, 3)  # as the index reads it
    assert rest == ["colour", (), 11]
    assert alts(page)[0] == "the query, 000.jpg"
    matches = index.search(image, "colour", (), 10)  # an image of the same name is not left out
    assert alts(page)[3:] == [f"result {i}, {match.path}" for i, match in enumerate(matches, 1)]
    page.number.value = 2
    assert index.calls[-1][0] == 1
    assert page.upload.value == ()


def test_an_index_of_one_photo_and_a_file_of_the_photos_name(make_page, tmp_path, monkeypatch):
    """The page searches the indexed photo by its row, whatever file has its name in the working directory."""
    page, _ = make_page(size=1)
    assert alts(page)[0] == "the query, 000.jpg"
    assert text(page.message.value) == "0 photos like 000.jpg by colour, the most similar first."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "000.jpg").write_text("no photo")
    page.attribute.value = "sleeve"
    assert text(page.message.value) == "0 photos like 000.jpg by sleeve, the most similar first."


def test_after_a_mistake_the_page_shows_one_sentence_and_works_on(make_page):
    page, _ = make_page(name=NASTY)
    page.name.value = "0<b>"
    assert "'0<b>'" in text(page.message.value)
    assert page.results.value == ""
    page.name.value = "04"
    assert text(page.message.value).endswith(
        "no photo of the index is named '04'; write the full name, such as '004.jpg'"
    )
    upload(page, f"{NASTY}.png", JPEG[:200])
    assert page.message.value.count("<") == 2  # <p> and </p>
    assert repr(f"{NASTY}.png") in text(page.message.value)
    assert "BytesIO" not in text(page.message.value)
    upload(page, "text.txt", b"no photo")
    assert "'text.txt': a text file, not a photo: download it again; upload another photo" in text(page.message.value)
    page.name.value = "004.jpg"
    assert text(page.message.value).startswith("10 photos")


@pytest.mark.parametrize(("network", "start"), [("asen", ["the query", "attention to colour", "result 1"]),
                                                ("classifier", ["the query", "result 1", "result 2"])])  # fmt: skip
def test_networks_without_attention_to_classes(make_page, network, start):
    page, _ = make_page(network)
    assert [alt.split(",")[0] for alt in alts(page)[:3]] == start
    assert ("1. 0." in text(page.results.value)) == (network == "asen")  # no class probabilities


def test_a_name_may_hold_anything(make_page):
    page, _ = make_page(name=NASTY)
    assert alts(page)[0] == f"the query, {NASTY}"
    assert NASTY in text(page.results.value)
    assert set(re.findall(r"<(\w+)", page.results.value)) == {"div", "figure", "img", "figcaption", "br"}
    assert page.results.value.count("mathjax_ignore") == page.results.value.count("<div")


def test_every_control_has_a_label(make_page):
    page, _ = make_page()
    controls = [control for row in page.box.children[:2] for control in row.children]
    assert controls == [page.number, page.name, page.upload, page.attribute, page.class_, page.count]
    assert all(control.description for control in controls)


def test_a_missing_index_is_one_sentence(tmp_path, monkeypatch):
    displayed = []
    monkeypatch.setattr(explore_page, "display", lambda *objects: displayed.extend(objects))
    explore_page.show_page(tmp_path, "data/index")
    assert text(displayed[0].value).startswith(f"Not possible: there is no search index in {tmp_path}")


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("network", ["classifier", "m3"])
def test_an_index_of_one_or_two_photos_has_a_page(tmp_path, network, size):
    prepared = noise_images(size)
    page = explore_page.ExplorePage(build_index(tmp_path, prepared, network), prepared)
    assert text(page.message.value).startswith(f"{size - 1} photos like 000.jpg")
    assert sum("result" in alt for alt in alts(page)) == size - 1

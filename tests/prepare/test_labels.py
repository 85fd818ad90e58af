"""The cells of a table become labels: names on one line, types, rare classes."""

import unicodedata

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downloads import check_refused
from own_photos import class_names, read


def test_values_are_trimmed_and_in_one_unicode_form(tiny_catalogue):
    def edit(rows):
        for row in rows[1:]:
            row[1] = {"red": "  café ", "green": unicodedata.normalize("NFD", "café"), "blue": "thé"}[row[1]]
            row[3] = row[3].replace("|", " | |")
        rows[0][1] = unicodedata.normalize("NFD", " Größe")

    tiny_catalogue.change(edit)
    source = read(tiny_catalogue, attributes=["Größe", "details"])
    assert [a.classes for a in source.taxonomy.attributes] == [("café", "thé"), ("collar", "pocket")]


def test_all_columns_but_the_named_ones_are_attributes(tiny_catalogue):
    found = read(tiny_catalogue, attributes=[], group_column="product").taxonomy
    assert found.names == ["colour", "sleeve", "details"]
    assert "product" in read(tiny_catalogue, attributes=[]).taxonomy.names


def test_a_type_can_be_forced(tiny_catalogue):
    assert read(tiny_catalogue, multi=["sleeve"]).taxonomy.attributes[1].multi
    check_refused(lambda: read(tiny_catalogue, single=["details"]), "line 12: 'details' has 2 values, but csv.single")


# rare classes


def rare_colours(catalogue):
    catalogue.change(lambda rows: [row.__setitem__(1, colour) for row, colour in zip(rows[1:4], "xyy", strict=True)])


def test_rare_classes_are_dropped_and_noted(tiny_catalogue):
    rare_colours(tiny_catalogue)
    source = read(tiny_catalogue, min_images=3)
    assert source.taxonomy.attributes[0].classes == ("blue", "green", "red")
    assert all("colour" not in row for row in class_names(source)[:3])
    assert source.notes == ("colour: classes with fewer than 3 images are dropped: 'y' (2), 'x' (1)",)


def test_rare_classes_fold_into_other(tiny_catalogue):
    rare_colours(tiny_catalogue)
    source = read(tiny_catalogue, min_images=3, rare="fold")
    assert source.taxonomy.attributes[0].classes == ("blue", "green", "other", "red")
    assert all(row["colour"] == ["other"] for row in class_names(source)[:3])
    assert "folded into 'other': 'y' (2), 'x' (1)" in source.notes[0]
    assert "other" not in read(tiny_catalogue, min_images=4, rare="fold").taxonomy.attributes[0].classes


def test_a_long_list_of_rare_classes_is_shortened(tiny_catalogue):
    tiny_catalogue.change(lambda rows: [row.__setitem__(1, f"c{i}") for i, row in enumerate(rows[1:13])])
    (note,) = read(tiny_catalogue).notes
    assert note.endswith("dropped: " + ", ".join(f"'c{i}' (1)" for i in (0, 1, 10, 11, 2, 3, 4, 5)) + ", and 4 more")


def test_an_attribute_without_two_classes(tiny_catalogue):
    tiny_catalogue.change(lambda rows: [row.__setitem__(2, "long") for row in rows[1:]])
    source = read(tiny_catalogue, attributes=[])
    assert "sleeve" not in source.taxonomy.names
    assert source.notes == ("column 'sleeve' is left out: fewer than two classes with 2 or more images",)
    check_refused(lambda: read(tiny_catalogue), "column 'sleeve': fewer than two classes", "csv.min_images")


AWKWARD = st.sampled_from(['"', "a,b", "a\nb", "x\r\ny", "<b>&amp;</b>", "=1+1", "é", "e\u0301", "日本", " a ", ""])
CELLS = st.lists(AWKWARD | st.text("ab,\"\n\u2028'|", max_size=4), max_size=3).map("|".join)


def naive_labels(cells: list[str]) -> list[set[str]]:
    """Return the names of each cell on one line each, since names are printed and drawn."""
    texts = [unicodedata.normalize("NFC", cell.replace("\u2028", " ")) for cell in cells]
    return [{" ".join(name.split()) for name in text.split("|")} - {""} for text in texts]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(CELLS, min_size=60, max_size=60))
def test_any_label_that_csv_can_hold_comes_back(tiny_catalogue, cells):
    tiny_catalogue.change(lambda rows: [row.__setitem__(3, cell) for row, cell in zip(rows[1:], cells, strict=True)])
    rows = class_names(read(tiny_catalogue, attributes=[], min_images=1))
    expected = naive_labels(cells)
    if len(set().union(*expected)) > 1:
        assert [set(row.get("details", ())) for row in rows] == expected

"""The cells of a table become labels: spellings, words for unknown, lists, types, rare classes."""

import unicodedata
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downloads import check_refused
from m3lib.errors import InputError
from m3lib.prepare import spelling
from own_photos import class_names, read
from tiny import SETTINGS


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


@pytest.mark.parametrize("own", ["Other", "OTHER", "other"])
@pytest.mark.parametrize("spellings", ["merge", "keep"])
def test_rare_classes_fold_into_a_persons_own_class_other(tiny_catalogue, own, spellings):
    rare_colours(tiny_catalogue)
    tiny_catalogue.change(lambda rows: [row.__setitem__(1, own) for row in rows[4:10]])
    source = read(tiny_catalogue, min_images=3, rare="fold", spellings=spellings)
    assert source.taxonomy.attributes[0].classes == tuple(sorted(["blue", "green", own, "red"]))
    assert all(row["colour"] == [own] for row in class_names(source)[:9])
    assert f"folded into {own!r}: 'y' (2), 'x' (1)" in source.notes[0]


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


AWKWARD = st.sampled_from(['"', "a,b", "<b>&amp;</b>", "=1+1", "é", "e\u0301", "日本", " a ", ""])
CELLS = st.lists(AWKWARD | st.text("ab,\"\u2028'|", max_size=4), max_size=3).map("|".join)


def naive_labels(cells: list[str]) -> list[set[str]]:
    """Return the names of each cell on one line each, since names are printed and drawn."""
    texts = [unicodedata.normalize("NFC", cell.replace("\u2028", " ")) for cell in cells]
    return [{" ".join(name.split()) for name in text.split("|")} - {""} for text in texts]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(CELLS, min_size=30, max_size=30).map(lambda cells: cells * 2))
def test_any_label_that_csv_can_hold_comes_back(tiny_catalogue, cells):
    tiny_catalogue.change(lambda rows: [row.__setitem__(3, cell) for row, cell in zip(rows[1:], cells, strict=True)])
    rows = class_names(read(tiny_catalogue, attributes=[], min_images=1))
    expected = naive_labels(cells)
    if len(set().union(*expected)) > 1:
        assert [set(row.get("details", ())) for row in rows] == expected


# labels as people write them


def read_cells(cells: list[str], name: str = "colour", **changes: object) -> tuple[list[str], list[str]]:
    """Return the classes of each cell, joined by +, and the notes, with the settings of params.yaml."""
    values, notes = spelling.read_values(pd.Series(cells, name=name), replace(SETTINGS.csv, **changes))
    return ["+".join(classes) for classes in values], notes


MISSING = ["nan", "NaN", " None ", "N/A", "n/a", "NA", "null", "#N/A", "<NA>", "-", "--", "\u2014", "?", "Unknown"]
MISSING += ["UNSPECIFIED", "not specified", "Not_Specified", "not available", "Missing", "\uff2e\uff21", "n.a.", "NaT"]
MISSING += [
    "N.A",
    "n.a",
    "N / A",
    "n/a.",
    "NA.",
    "N. A.",
    "NaN.",
    "none.",
    '"nan"',
    "'None'",
    "\\N",
    "(null)",
    "<null>",
]
MISSING += [
    "<none>",
    "(blank)",
    "{NULL}",
    "\u201cn/a\u201d",
    "#VALUE!",
    "#NULL!",
    "#REF!",
    "#DIV/0!",
    "#N/A N/A",
    "#NA",
]
MISSING += ["-nan", "no data", "No_Data", "UNK", "<unk>", "tbd", "---", "???", "(-)", "\u2013 "]


@pytest.mark.parametrize("word", MISSING)
def test_a_word_for_missing_is_unknown_and_noted(word):
    found, notes = read_cells(["red", word, "blue", f"red|{word}", "", word])
    assert found == ["red", "", "blue", "red", "", ""]
    assert notes == [f"colour: read as unknown (csv.missing): {word.strip()!r} (3)"]


@pytest.mark.parametrize(
    "word", ["-5", "-1", "0", "no", "nana", "N", "a", "value", "ref", "x", "no sleeve", "!", "()", "..."]
)
def test_a_class_that_looks_like_a_word_for_missing_stays(word):
    assert read_cells(["red", word, word]) == (["red", word, word], [])


def test_signs_around_a_number_are_kept_in_words_for_missing():
    cells = [".5", "5", "(5)", "#5", "-5", "5.0"]
    assert read_cells(cells, missing=["5"], spellings="keep")[0] == [".5", "", "(5)", "#5", "-5", ""]


@pytest.mark.parametrize("word", ["N / A", "n/a", "N/A."])
def test_a_word_for_missing_is_not_divided(word):
    for separator in ("|", "/"):
        _, notes = read_cells([word] * 3 + ["red"], separator=separator)
        assert notes == [f"colour: read as unknown (csv.missing): {word!r} (3)"]
    assert not any("may be divided" in note for note in read_cells(["n", "a", word, word])[1])


def test_the_words_for_missing_are_a_setting():
    cells = ["none", "absent", "Absent", "red", "nothing else"]
    found, notes = read_cells(cells, missing=["absent"])
    assert found == ["none", "", "", "red", "nothing else"]
    assert notes == ["colour: read as unknown (csv.missing): 'Absent' (1), 'absent' (1)"]
    assert read_cells(cells, missing=[]) == (["none", "Absent", "Absent", "red", "nothing else"], [MERGED])
    assert read_cells(cells, missing=[], spellings="keep") == (cells, [])


MERGED = "colour: spellings of one class are merged (csv.spellings): 'Absent' (1), 'absent' (1)"
ONE_CLASS = [  # the most frequent spelling, others
    ("black", ["Black", "BLACK"]),
    ("38", ["38.0", "38.00", "38,0", "\uff13\uff18"]),
    ("1.5", ["1,5", "1.50"]),
    ("-1", ["-1.0", "\u22121"]),
    ("TRUE", ["True", "true"]),
    ("v-neck", ["V neck", "v_neck", "V - Neck", "v\u2011neck", "V  NECK", "v\u2013neck"]),
    ("men's", ["Men\u2019s"]),
    ("2 piece", ["2-piece", "2_Piece"]),
    ("size 38", ["size_38"]),
    ("caf\u00e9", ["Caf\u00c9", "CAFE\u0301"]),
    ("stra\u00dfe", ["STRASSE"]),
    ("\u0646\u200c\u0647", ["\u0646\u0647"]),
]
DIFFERENT = [
    "-1",
    "1",
    "1.5",
    "15",
    "+1",
    "01",
    "1 5",
    "1-5",
    "1/5",
    "size 1",
    "size -1",
    "size-1",
    "1,500",
    "1.500",
    "1500",
]
DIFFERENT += [
    "-1.5",
    "-15",
    "1.05",
    "10.5",
    "0.5",
    "5",
    "v neck",
    "u neck",
    "vneck",
    "a-b",
    "a/b",
    "a+b",
    "cafe",
    "caf\u00e9",
]


@pytest.mark.parametrize(("common", "others"), ONE_CLASS)
def test_spellings_of_one_class_are_merged_into_the_most_frequent(common, others):
    cells = [*others, common, common, "else"]
    found, notes = read_cells(cells)
    assert found == [common] * (len(others) + 2) + ["else"]
    assert len(notes) == 1
    assert notes[0].startswith(f"colour: spellings of one class are merged (csv.spellings): {common!r} (2), ")
    assert all(
        f"{other!r}" in notes[0] for other in others if " ".join(other.split()) == other and "\u0301" not in other
    )
    kept, notes = read_cells(cells, spellings="keep")
    assert set(kept) == {unicodedata.normalize("NFC", " ".join(cell.split())) for cell in cells}
    assert notes == []


def test_what_is_different_stays_different():
    assert read_cells(DIFFERENT, missing=[]) == (DIFFERENT, [])


@pytest.mark.parametrize(
    "hidden", ["red\u200b", "r\u00aded", "\ufeffred", "re\u2060d", "red\ufe0f", "re\u200dd", "red\u200e"]
)
def test_an_invisible_character_makes_no_class_and_is_noted(hidden):
    for cells in (["red", hidden, "blue"], [hidden, f"blue|{hidden}", "blue"]):
        found, notes = read_cells(cells, spellings="keep")
        assert set("+".join(found).split("+")) == {"red", "blue"}
        (note,) = notes
        assert note.startswith(
            "colour: characters that can't be seen are removed: 'r" if hidden[0] == "r" else "colour: "
        )
        assert note.isprintable()
        assert "\\u" in note or "\\xad" in note


def test_a_class_is_renamed_merged_or_made_unknown():
    cells = ["navy blue", "Navy_Blue", "blue", "BLUE", "none", "brown", "red|navy blue", "beige"]
    names = {"navy blue": "Blue", "none": "plain", "brown": "", "Beige": "sand"}
    found, _ = read_cells(cells, rename={" colour ": names, "other": {"red": "x"}})
    assert found == ["Blue", "Blue", "Blue", "Blue", "plain", "", "Blue+red", "sand"]
    exact = {"navy blue": "blue", "none": "plain"}
    found, notes = read_cells(cells, rename={"colour": exact}, spellings="keep")
    assert found == ["blue", "Navy_Blue", "blue", "BLUE", "plain", "brown", "blue+red", "beige"]
    assert notes == []
    assert read_cells(["navy", "blue", "blue"], rename={"colour": {"navy": "Blue"}})[0] == ["Blue"] * 3
    swapped, _ = read_cells(["a", "b", "A"], rename={"colour": {"a": "b", "b": "a", "A": "c"}})
    assert swapped == ["b", "a", "c"]


def test_a_class_that_does_not_exist_is_not_renamed():
    with pytest.raises(InputError, match=r"csv\.rename: the column 'colour' has no class 'navi'; did you mean 'navy'"):
        read_cells(["navy", "red"], rename={"colour": {"navi": "blue"}})
    with pytest.raises(InputError, match=r"csv\.rename: the column 'colour' has no class 'NAVY'"):
        read_cells(["navy", "red"], rename={"colour": {"NAVY": "blue"}}, spellings="keep")


def test_another_separator():
    assert read_cells(["red;white", "blue ; ", "a|b"], separator=";") == (["red+white", "blue", "a|b"], [])
    assert read_cells(["red and white", "brand"], separator=" and ") == (["red+white", "brand"], [])


@pytest.mark.parametrize("symbol", [";", ",", "/", "+", "&"])
def test_a_separator_that_is_not_set_is_pointed_out(symbol):
    cells = ["red", "white", f"red{symbol}white", f"white {symbol} Red", f"red{symbol}white"]
    found, notes = read_cells(cells)
    assert found == ["red", "white", *[cell.strip() for cell in cells[2:]]]
    example = f"colour: 3 cells such as 'red{symbol}white' may be divided by {symbol!r}; if they are several classes, "
    assert notes == [f"{example}set csv.separator to {symbol!r} (it is '|')"]


@pytest.mark.parametrize(
    "cells",
    [
        ["3/4 sleeve", "1/2 sleeve", "long"],
        ["2020/01/05", "2020/01/06", "2021/01/05"],
        ["rock & roll", "rhythm & blues"],
        ["Nike, Inc.", "Acme, Ltd.", "red"],
        ["red/", "/red", "red"],
    ],
)
def test_a_name_that_holds_such_a_symbol_is_left_as_it_is(cells):
    assert read_cells(cells) == (cells, [])


@pytest.mark.parametrize("cells", [["38", "40", "38/40"], ["red", "white", "red/white/"]])
def test_one_cell_of_known_classes_is_enough(cells):
    (note,) = read_cells(cells)[1]
    assert f"1 cells such as {cells[2]!r} may be divided by '/'" in note


def test_cells_that_share_their_parts_are_pointed_out_too():
    _, notes = read_cells(["Action, Drama", "Action, Comedy", "Drama, Comedy"])
    assert "3 cells such as 'Action, Drama' may be divided by ','" in notes[0]


LISTS = {
    "['red', 'white']": "red+white",
    '["red","white"]': "red+white",
    '["men\'s", "white"]': "men's+white",
    "['red' 'white']": "red+white",
    "['red',\n 'white']": "red+white",
    "[red, white]": "red+white",
    " ['red'] ": "red",
    "['red', None, nan, '']": "red",
    "[]": "",
    "('red', 'white')": "red+white",
    "{'red'}": "red",
    "[1, 2.0]": "1+2.0",
}


@pytest.mark.parametrize("cell", LISTS)
def test_a_cell_that_is_a_list_is_read_as_one(cell):
    found, notes = read_cells(["red", cell])
    assert found == ["red", LISTS[cell]]
    assert notes[0] == f"colour: 1 cells such as {cell!r} are read as lists"


@pytest.mark.parametrize(
    "cell", ["[A] red", "(red)", "(red, white)", "{red}", "[red", "['red'] x", "()", "[[a]]", "(')'"]
)
def test_other_brackets_are_part_of_a_name(cell):
    assert read_cells([cell, "red"]) == ([cell, "red"], [])


def test_the_notes_of_the_labels_are_printed_before_any_photo_is_opened(tiny_catalogue):
    def edit(rows):
        for i, row in enumerate(rows[1:]):
            row[1] = [row[1], row[1].upper(), "N/A", row[1]][i % 4]

    tiny_catalogue.change(edit)
    notes = read(tiny_catalogue).notes
    assert notes[0] == "colour: read as unknown (csv.missing): 'N/A' (15)"
    assert notes[1].startswith("colour: spellings of one class are merged (csv.spellings): 'blue' (10), 'BLUE' (5); ")

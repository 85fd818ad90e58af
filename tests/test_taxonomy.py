"""Class ids against plain counting, and what a wrong name or a hopeless attribute is told."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3lib.errors import InputError
from m3lib.taxonomy import Attribute, Taxonomy, nearest, one_line
from tiny import TAXONOMY

taxonomies = st.lists(st.tuples(st.integers(2, 6), st.booleans()), min_size=1, max_size=6).map(
    lambda sizes: Taxonomy(
        tuple(Attribute(f"a{n}", tuple(f"c{m}" for m in range(size)), multi) for n, (size, multi) in enumerate(sizes))
    )
)


def pairs(taxonomy: Taxonomy) -> list[tuple[int, str, str]]:
    """(attribute, its name, class name) of every class id, by counting."""
    return [(n, a.name, class_) for n, a in enumerate(taxonomy.attributes) for class_ in a.classes]


@given(taxonomies)
def test_class_ids_count_through_the_attributes_in_order(taxonomy):
    expected = pairs(taxonomy)
    assert taxonomy.num_classes == len(expected)
    assert taxonomy.num_attributes == len(taxonomy.names) == len(taxonomy.attributes)
    assert taxonomy.attribute_of_class.tolist() == [n for n, _, _ in expected]
    for class_id, (_, attribute, class_) in enumerate(expected):
        assert taxonomy.class_name(class_id) == class_
        assert taxonomy.class_id(attribute, class_) == class_id


@given(taxonomies)
def test_slices_cut_the_class_ids_by_attribute(taxonomy):
    for n in range(taxonomy.num_attributes):
        own = [class_id for class_id, (owner, _, _) in enumerate(pairs(taxonomy)) if owner == n]
        assert np.arange(taxonomy.num_classes)[taxonomy.classes_of(n)].tolist() == own
        assert [taxonomy.offsets[n], taxonomy.offsets[n + 1]] == [own[0], own[-1] + 1]


def test_save_and_load_give_the_same_taxonomy(tmp_path: Path):
    taxonomy = Taxonomy((*TAXONOMY.attributes, Attribute("Größe", ("weit, lang", "eng"), True)))
    taxonomy.save(tmp_path / "taxonomy.json")
    assert Taxonomy.load(tmp_path / "taxonomy.json") == taxonomy
    assert "Größe" in (tmp_path / "taxonomy.json").read_text()


@pytest.mark.parametrize(
    ("attribute", "class_", "message"),
    [
        ("color", "red", "unknown attribute 'color'; did you mean 'colour'?"),
        ("colour", "grn", "unknown class of 'colour' 'grn'; did you mean 'green'?"),
        ("colour", "xyz", "unknown class of 'colour' 'xyz'; did you mean 'blue', 'green', 'red'?"),
    ],
)
def test_a_wrong_name_is_told_the_nearest(attribute, class_, message):
    with pytest.raises(InputError) as error:
        TAXONOMY.class_id(attribute, class_)
    assert str(error.value) == message


def test_nearest_returns_a_known_name():
    assert nearest("long", ("short", "long"), "length") == "long"


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ((), "one or more attributes"),
        ((Attribute("a", ("x", "y")), Attribute("a", ("x", "y"))), r"different names, got \['a', 'a'\]"),
        ((Attribute("a", ("x",)),), r"attribute 'a' needs at least two different classes.*\['x'\]; leave"),
        ((Attribute("a", ("x", "y", "x")),), "attribute 'a' needs at least two different classes"),
        ((Attribute("a", ()),), "attribute 'a' needs at least two different classes"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(attributes, message):
    with pytest.raises(InputError, match=message):
        Taxonomy(attributes)


def test_a_full_name_is_found_whatever_an_attributes_name_holds():
    names = ("Colour", "Colour: main", "Size: EU: men", "a")
    taxonomy = Taxonomy(tuple(Attribute(name, ("red", "main: blue", "x: y")) for name in names))
    for m in range(taxonomy.num_classes):
        if taxonomy.full_name(m) != "Colour: main: blue":
            assert taxonomy.class_ids(taxonomy.full_name(m)) == [m]
    assert taxonomy.class_ids("Colour: main: blue") == [1]
    for name, message in [
        ("Colour: main: rad", "unknown class of 'Colour: main' 'rad'; did you mean 'red'"),
        ("Colour: rad", "unknown class of 'Colour' 'rad'; did you mean 'red'"),
        ("Coulour: red", "unknown attribute 'Coulour'; did you mean 'Colour'"),
        ("red", "unknown attribute 'red'"),
        ("Size: EU: man: red", "unknown attribute 'Size'; did you mean .*'Size: EU: men'"),
    ]:
        with pytest.raises(InputError, match=message):
            taxonomy.class_ids(name)


def test_two_classes_may_have_one_full_name():
    taxonomy = Taxonomy((Attribute("a", ("b: c", "d")), Attribute("a: b", ("c", "d"))))
    assert taxonomy.class_ids("a: b: c") == [0, 2]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("red\u200b", "red"),
        ("\ufeffre\u00add", "red"),
        ("re\u2060d\u200e", "red"),
        ("\u00a0red\u3000wine\u2003", "red wine"),
        ("\u2800red\u3164", "red"),
        ("re\u200dd\u200c", "red"),
        ("\u2764\ufe0f", "\u2764"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),  # one picture of two people
        ("\u200c\u0646\u200c\u200d\u0647\u200c", "\u0646\u200c\u0647"),
        ("e\u0301", "\u00e9"),
        ("\u200b\u2060", ""),
    ],
)
def test_invisible_characters_make_no_other_name(text, name):
    assert one_line(text) == name
    assert one_line(name) == name


def test_a_name_becomes_one_printable_line():
    assert one_line(" a\r\n\tb\u2028\u202ec\x1b[1m ") == "a b c [1m"
    assert one_line("\u0646\u200c\u0647") == "\u0646\u200c\u0647"  # a joiner is part of the word

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


def test_a_name_becomes_one_printable_line():
    assert one_line(" a\r\n\tb\u2028\u202ec\x1b[1m ") == "a b c [1m"
    assert one_line("\u0646\u200c\u0647") == "\u0646\u200c\u0647"  # a joiner is part of the word

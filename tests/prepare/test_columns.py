"""Columns to filter by: numbers, text and missing values, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from m3lib.errors import InputError
from m3lib.prepare.columns import filter_columns
from tiny import SETTINGS

TABLE = """image,colour,price,size,gender
b.png,red,12.5,9,women
a.png,blue,,10, men
c.png,red,3,XL,
"""


@pytest.fixture
def settings(tmp_path):
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "table.csv").write_text(TABLE)
    return replace(SETTINGS.csv, table=str(tmp_path / "table.csv"), attributes=["colour"])


def test_columns_follow_the_images_and_are_numbers_or_text(settings):
    frame = filter_columns(settings, ["price", "size", "gender"], ["a.png", "b.png", "gone.png", "c.png"])
    np.testing.assert_array_equal(frame["price"], [np.nan, 12.5, np.nan, 3])
    assert frame["size"].fillna("?").tolist() == ["10", "9", "?", "XL"]
    assert frame["gender"].fillna("?").tolist() == ["men", "women", "?", "?"]
    assert filter_columns(settings, [], ["a"]).shape == (1, 0)


def test_a_column_that_is_not_there_is_told(settings):
    with pytest.raises(InputError, match=r"index\.columns: .*table\.csv has no 'prise'; did you mean 'price'"):
        filter_columns(settings, ["prise"], ["a.png"])


def test_words_for_unknown_are_missing_and_other_words_are_told(settings, tmp_path, capsys):
    table = TABLE.replace("3,XL", "3,n/a").replace("blue,,", "blue,N/A,")
    (tmp_path / "table.csv").write_text(table)
    frame = filter_columns(settings, ["price", "size"], ["a.png", "b.png", "c.png"])
    np.testing.assert_array_equal(frame["price"], [np.nan, 12.5, 3])
    np.testing.assert_array_equal(frame["size"], [10, 9, np.nan])
    assert not capsys.readouterr().out
    (tmp_path / "table.csv").write_text(TABLE)
    filter_columns(settings, ["size"], ["a.png", "b.png", "c.png"])
    assert "size: text, not numbers, since there are words such as 'XL' (csv.missing)" in capsys.readouterr().out

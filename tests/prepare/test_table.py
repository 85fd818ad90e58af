"""A table is read, whatever divides its columns, or refused with all its broken rows, the column or the setting."""

import pytest

from downloads import check_refused
from m3lib.errors import InputError
from m3lib.prepare import table as table_reader
from own_photos import open_table, read


def edit_cell(row: int, column: int, value: str):
    def edit(rows):
        rows[row][column] = value

    return edit


def split_words(word: str, row: int, wrong: str):
    def edit(rows):
        for i, cells in enumerate(rows[1:], 1):
            cells[4] = wrong if i == row else word

    return edit


# bad tables and settings: (edit of the rows, or bytes, or None), settings, words of the sentence

BAD_ROWS = {
    "split word": (split_words("train", 4, "tranig"), {"split_column": "product"}, ["line 5", "'product'", "'tranig'"]),
    "escape": (edit_cell(2, 0, "photos/../../x.jpg"), {}, ["line 3", "outside"]),
    "no photo named": (edit_cell(2, 0, "  "), {}, ["line 3", "'image'", "empty"]),
    "twice": (edit_cell(9, 0, "./photos//03.jpg"), {}, ["line 10", "line 5", "photos/03.jpg"]),
    "missing photo": (
        edit_cell(9, 0, "photos/no\t.jpg"),
        {},
        ["line 10", r"no\t.jpg", "1 of 60", "images.max_unreadable"],
    ),
    "ragged": (lambda rows: rows[6].append("x"), {}, ["line 7", "6 values", "5 columns"]),
    "quoted newline": (lambda rows: (rows[1].__setitem__(4, "a\nb\r\nc"), rows[2].pop()), {}, ["line 5", "4 values"]),
    "column twice": (edit_cell(0, 2, "colour"), {}, ["line 1", "'colour'"]),
    "column without a name": (edit_cell(0, 2, ""), {}, ["line 1", "column 3"]),
    "no image column": (edit_cell(0, 0, "file"), {}, ["'image'", "csv.image_column", "'file', 'colour'"]),
    "no class twice": (None, {"attributes": [], "min_images": 99}, ["no column has two classes with 99"]),
    "missing attribute": (None, {"attributes": ["color"]}, ["csv.attributes", "'color'", "'colour'"]),
    "attribute twice": (None, {"attributes": ["colour", " colour "]}, ["csv.attributes: 'colour' is listed twice"]),
    "photos as attribute": (
        None,
        {"attributes": ["colour", " image"]},
        ["csv.attributes: 'image'", "csv.image_column"],
    ),
    "group as attribute": (
        None,
        {"attributes": ["product"], "group_column": "product"},
        ["csv.attributes: 'product'", "csv.group_column"],
    ),
    "split as attribute": (
        split_words("train", 0, ""),
        {"attributes": ["product"], "split_column": " product "},
        ["csv.attributes: 'product'", "csv.split_column"],
    ),
    "a row in a column's name": (
        edit_cell(0, 4, "a\nphotos/00.jpg,red,long"),
        {},
        ["line 1", "column 5", "holds a row", "quotes"],
    ),
    "column to rename": (None, {"rename": {"color": {"red": "rot"}}}, ["csv.rename", "'color'", "'colour'"]),
    "class to rename": (None, {"rename": {"colour": {"rad": "rot"}}}, ["csv.rename", "'rad'", "'red'"]),
    "missing multi": (None, {"multi": ["detail"]}, ["csv.multi", "'details'"]),
    "multi not chosen": (None, {"multi": ["product"]}, ["csv.multi", "'product'"]),
    "multi and single": (None, {"multi": ["colour"], "single": ["colour"]}, ["'colour'", "multi", "single"]),
    "missing split": (None, {"split_column": "fold"}, ["csv.split_column", "'fold'"]),
    "no table": (None, {"table": "/nowhere/x.csv"}, ["/nowhere/x.csv", "csv.table"]),
    "a folder": (None, {"table": "/"}, ["can't be read", "csv.table"]),
}
BAD_BYTES = {
    "nothing": (b"", ["empty"]),
    "Latin-1 after a mark": (b"\xef\xbb\xbfimage,colour\n1.jpg,caf\xe9\n", ["line 2", "UTF-8"]),
    "half of UTF-16": ("image,colour\n1.jpg,red\n".encode("utf-16")[:-1], ["line 2", "not UTF-16"]),
    "UTF-16 without a mark": ("image,colour\n1.jpg,red\n".encode("utf-16-le"), ["zero bytes"]),
    "zeros": (b"image,colour\n1.jpg,\0\n", ["zero bytes"]),
    "open quote": (b'image,colour\n1.jpg,red\n2.jpg,"red\n3.jpg,blue\n', ["line 3", "quotes"]),
}
DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_table_or_setting_is_one_sentence(tiny_catalogue, case):
    edit, changes, words = BAD_ROWS[case]
    if edit:
        tiny_catalogue.change(edit)
    check_refused(lambda: read(tiny_catalogue, **changes), *words)


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bytes_that_are_no_table_are_one_sentence(tiny_catalogue, case):
    data, words = BAD_BYTES[case]
    tiny_catalogue.table.write_bytes(data)
    check_refused(lambda: read(tiny_catalogue, attributes=[]), str(tiny_catalogue.table), *words)


def test_windows_line_ends_a_mark_and_blank_lines_change_nothing(tiny_catalogue):
    plain = read(tiny_catalogue)
    text = tiny_catalogue.table.read_bytes().replace(b"\r\n", b"\n")
    tiny_catalogue.table.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n", 40) + b"\n\n")
    other = read(tiny_catalogue)
    assert other.taxonomy == plain.taxonomy
    assert other.manifest.equals(plain.manifest)


# what divides the columns


def write_text(tiny_catalogue, symbol: str, before: str = "", end: str = "\r\n") -> None:
    """Write the table as another program does; a cell that holds the symbol, or a line break, is quoted."""

    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & {symbol, "\n", '"'} else text

    lines = [symbol.join(map(cell, row)) for row in tiny_catalogue.rows()]
    tiny_catalogue.table.write_text(before + end.join(lines) + end, encoding="utf-8", newline="")


@pytest.mark.parametrize("symbol", DELIMITER_NAMES)
@pytest.mark.parametrize("delimiter", ["auto", "named"])
def test_any_delimiter_gives_the_same_cells(tiny_catalogue, symbol, delimiter):
    tiny_catalogue.change(lambda rows: [edit_cell(i, 4, f"a{other}b\n c")(rows) for i, other in enumerate(",;\t|", 1)])
    plain = open_table(tiny_catalogue)
    write_text(tiny_catalogue, symbol, "\ufeff")
    found = open_table(tiny_catalogue, delimiter="auto" if delimiter == "auto" else DELIMITER_NAMES[symbol])
    assert found.cells.equals(plain.cells)
    tiny_catalogue.table.write_text(tiny_catalogue.table.read_text("utf-8-sig"), "utf-16", newline="")
    assert open_table(tiny_catalogue).cells.equals(plain.cells)
    assert list(plain.cells.index)[:6] == [2, 4, 6, 8, 10, 11]  # the file's lines; some cells span two
    assert found.names.tolist() == plain.names.tolist()


def test_the_delimiter_that_gives_the_photo_column_is_taken_even_if_another_gives_more(tmp_path):
    (tmp_path / "table.csv").write_text("a;b;c;d,image\n1;2;3;4,5.jpg\n")
    cells, _ = table_reader.read_cells(tmp_path / "table.csv", "auto", "image")
    assert cells.to_dict("list") == {"a;b;c;d": ["1;2;3;4"], "image": ["5.jpg"]}


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "\ufeffsep=;", "sep=\t", "sep=^"])
def test_excels_first_line_names_the_delimiter(tiny_catalogue, first):
    symbol = first.strip('"')[-1]
    plain = open_table(tiny_catalogue)
    write_text(tiny_catalogue, symbol, f"{first}\r\n")
    found = open_table(tiny_catalogue)
    assert found.cells.to_numpy().tolist() == plain.cells.to_numpy().tolist()
    assert list(found.cells.index) == [line + 1 for line in plain.cells.index]


def test_a_wrong_delimiter_is_named_with_the_columns_that_it_gives(tiny_catalogue):
    write_text(tiny_catalogue, ";", "sep=;\n")
    words = ["'image'", "csv.delimiter = tab", "'image;colour;sleeve;details;product'"]
    check_refused(lambda: read(tiny_catalogue, delimiter="tab"), str(tiny_catalogue.table), *words)
    words = ["csv.image_column", "csv.delimiter = auto", "'image', 'colour', 'sleeve'"]
    check_refused(lambda: read(tiny_catalogue, image_column="photo"), *words)


def test_empty_columns_and_rows_that_a_spreadsheet_adds_are_skipped(tiny_catalogue):
    plain = open_table(tiny_catalogue)
    tiny_catalogue.change(lambda rows: ([row.extend(["", " "]) for row in rows], rows.append([""] * 7)))
    assert open_table(tiny_catalogue).cells.equals(plain.cells)


def test_the_row_numbers_that_pandas_writes_are_a_column_like_any_other(tiny_catalogue):
    plain = open_table(tiny_catalogue)
    tiny_catalogue.change(lambda rows: [row.insert(0, str(i - 1) if i else "") for i, row in enumerate(rows)])
    assert open_table(tiny_catalogue).cells.drop(columns="column 1").equals(plain.cells)
    assert "column 'column 1' is left out" in " ".join(read(tiny_catalogue, attributes=[]).notes)


# broken rows


def break_rows(rows: list[list[str]]) -> None:
    rows[3].append("x")
    rows[9][0] = " "
    rows[12][0] = "../x.jpg"
    rows[20][0] = "./photos//03.jpg"
    rows[21].pop()
    rows[30][4] = "tranig"


def test_all_broken_rows_are_named_at_once_or_left_out(tiny_catalogue):
    tiny_catalogue.change(lambda rows: (split_words("train", 0, "")(rows), break_rows(rows)))
    with pytest.raises(InputError) as raised:
        open_table(tiny_catalogue, split_column="product", max_broken=0.09)
    heading, *lines = str(raised.value).split("\n")
    advice = "mend the table, or set csv.max_broken in params.yaml to 0.1 to leave such rows out"
    assert heading == f"{tiny_catalogue.table} has 6 faults; {advice}:"
    assert [line.split(":")[0].strip() for line in lines] == [f"line {n}" for n in (4, 10, 13, 21, 22, 31)]
    words = ("6 values for the 5", "empty", "outside", "already on line 5", "4 values", "must be train")
    assert all(word in line for word, line in zip(words, lines, strict=True))
    table = open_table(tiny_catalogue, split_column="product", max_broken=0.1)
    assert len(table.cells) == 54
    (note,) = table.notes
    counted = "6 of 60 rows are broken and left out (csv.max_broken): lines 4, 10, 13, 21, 22, 31; line 4: 6 values"
    assert note.startswith(counted)


def test_a_long_list_of_broken_rows_is_shortened_but_counted(tiny_catalogue):
    tiny_catalogue.change(lambda rows: [row.append("x") for row in rows[1:41]])
    with pytest.raises(InputError) as raised:
        open_table(tiny_catalogue)
    lines = str(raised.value).split("\n")
    assert "has 40 faults" in lines[0]
    assert (len(lines), lines[-1]) == (32, "  and 10 more")


QUOTED = {  # lines 3 to 5 of a table, the lines that are broken, words on the first one
    "class": (['{1},"red,', '{2},blue,y"', "{3},blue,z"], [3, 4], "line 3: 2 values"),
    "class of whole rows": (
        ['{1},"red', '{2},blue",y', "{3},blue,z"],
        [3, 4],
        "line 3: column 'colour' has a line break",
    ),
    "photo": (['"{1},red,x', '{2}",blue,y', "{3},blue,z"], [3, 4], "line 3: column 'image' has a line break"),
    "three rows": (['{1},"red', "{2},blue,y", '{3},blue",z'], [3, 4, 5], "line 3: column 'colour' has a line break"),
    "after a text": (['{1},"red', '",x', '{2},"blue', 'green",y'], [5, 6], "line 5: column 'colour' has a line break"),
    "text that holds a row": (['{1},red,"x', '{2},blue,y"', "{3},blue,z"], [3, 4], "line 3: column 'text' has a line"),
    "text before it": (['{1},red,"x', '{2},blue,"', "{3},blue,z"], [3, 4], "line 3: column 'text' has a line break"),
    "text": (['{1},red,"x, y', "", '* z, 1.jpg, and more"', "{2},blue,z"], [], ""),
}


@pytest.mark.parametrize("attributes", [["colour"], []])
@pytest.mark.parametrize("case", QUOTED)
def test_a_quote_that_is_not_closed_swallows_no_row_in_silence(tiny_catalogue, case, attributes):
    texts, broken, words = QUOTED[case]
    names = [photo.relative_to(tiny_catalogue.table.parent).as_posix() for photo in tiny_catalogue.photos]
    rows = [text.format(*names) for text in texts] + [
        f"{n},{'green' if i % 2 else 'blue'},same" for i, n in enumerate(names[4:])
    ]
    tiny_catalogue.table.write_text("\n".join(["image,colour,text", f"{names[0]},red,x", *rows]))
    found = open_table(tiny_catalogue, attributes=attributes, max_broken=0.2)
    assert set(range(3, 3 + len(texts))) - set(found.cells.index) >= set(broken)
    assert all("\n" not in cell.strip() for cell in found.cells["colour"])
    if not broken:
        return
    with pytest.raises(InputError, match="quote") as raised:
        open_table(tiny_catalogue, attributes=attributes)
    lines = str(raised.value).split("\n")[1:]
    assert lines[0].strip().startswith(words)
    assert [line.split(":")[0].strip() for line in lines] == [f"line {n}" for n in broken]
    counted = f"{len(broken)} of {len(found.cells) + len(broken)} rows are broken and left out"
    assert any(note.startswith(counted) for note in found.notes)


def test_a_column_that_numbers_or_names_the_rows_is_no_attribute_unless_it_is_listed(tiny_catalogue):
    def edit(rows):
        for i, row in enumerate(rows):
            row[:0] = [str(i % 30) if i else ""]
            row[5] = f"sku {i}" if i else "sku"

    tiny_catalogue.change(edit)
    found = open_table(tiny_catalogue, attributes=[], min_images=1)
    assert found.attributes == ["colour", "sleeve", "details"]
    assert [note.split(":")[0] for note in found.notes] == [f"column {c!r} is left out" for c in ("column 1", "sku")]
    listed = open_table(tiny_catalogue, attributes=["column 1", "sku"], min_images=1)
    assert (listed.attributes, listed.notes) == (["column 1", "sku"], [])


def test_a_table_of_broken_rows_only_is_refused_whatever_is_allowed(tiny_catalogue):
    tiny_catalogue.change(lambda rows: [row.append("x") for row in rows[1:]])
    with pytest.raises(InputError, match="has 60 faults:"):
        open_table(tiny_catalogue, max_broken=1.0)


@pytest.mark.parametrize(
    ("broken", "words"),
    [('1.jpg,"5" waist,b', "after"), ('1.jpg,"5,b', "1.jpg"), ('"1.jpg",a"b",c', "")],
)
def test_a_broken_quote_breaks_its_own_line_only(tmp_path, broken, words):
    path = tmp_path / "table.csv"
    path.write_text(f'image,a,b\n{broken}\n2.jpg,"x\ny",z\n3.jpg,u,v\n')
    cells, faults = table_reader.read_cells(path)
    assert cells["image"].tolist()[-2:] == ["2.jpg", "3.jpg"]
    assert list(faults) == ([2] if words else [])
    assert list(cells.index)[-2:] == [3, 5]
    assert cells.loc[3].tolist() == ["2.jpg", "x\ny", "z"]


@pytest.mark.parametrize(("count", "total"), [(1, 60), (22, 44446), (1, 3), (7, 100), (999, 1000), (5, 10), (1, 1000)])
def test_the_advised_share_allows_the_broken_rows(count, total):
    share = table_reader.round_up(count / total)
    assert count / total <= share <= 1
    assert float(f"{share:g}") == share

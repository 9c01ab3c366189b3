import pytest

from noise2map.report import tables

ROWS = [
    {"model": "a", "steps": 1, "mIoU": 0.512345, "note": None},
    {"model": "b|c", "steps": 10, "mIoU": float("nan"), "note": "x"},
]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.512345, "0.5123"),
        (71.25, "71.25"),
        (1234.5, "1234"),
        (12345678.0, "1.235e+07"),
        (0.0, "0.000"),
        (0.00123, "0.00123"),
        (1e-9, "1.000e-09"),
        (3, "3"),
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        ("word", "word"),
    ],
)
def test_values_have_four_digits(value, text):
    assert tables.format_value(value) == text


def test_text_table_lines_up():
    lines = tables.text_table(ROWS).splitlines()
    assert lines[0].split() == ["model", "steps", "mIoU", "note"]
    assert lines[2].index("1") == lines[3].index("0")  # 1 and 10 end in the same column
    assert lines[2].startswith("a  ") and lines[3].startswith("b|c")
    assert lines[3].split()[2] == "–"


def test_markdown_table_is_well_formed():
    lines = tables.markdown_table(ROWS, ["model", "mIoU"]).splitlines()
    assert lines[0] == "| model | mIoU |"
    assert lines[1] == "| --- | ---: |"
    assert lines[3] == "| b\\|c | – |"


def test_csv_round_trip(tmp_path):
    path = tmp_path / "results" / "a.csv"
    tables.write_csv(path, ROWS)
    rows = tables.read_csv(path)
    assert rows[0] == {"model": "a", "steps": 1, "mIoU": 0.512345, "note": None}


def test_titled_table_leaves_out_what_no_row_has():
    rows = [{"stage": "step", "ms": 12.345, "peak": None}, {"stage": "all", "ms": 1.5, "peak": None}]
    lines = tables.titled_table(rows, {"what": "stage", "milliseconds": "ms", "peak MiB": "peak"}).splitlines()
    assert [line.split() for line in lines[2:]] == [["step", "12.3"], ["all", "1.50"]]
    assert lines[0].split() == ["what", "milliseconds"]


def test_a_broken_csv_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2,3\n")
    with pytest.raises(ValueError, match="line 2"):
        tables.read_csv(path)


def test_a_block_of_a_page_is_replaced_and_the_rest_kept(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- scores -->\nold\n<!-- /scores -->\nafter\n")
    assert tables.replace_block(page, "scores", "| new \\1 |")
    assert page.read_text() == "before\n<!-- scores -->\n| new \\1 |\n<!-- /scores -->\nafter\n"
    assert not tables.replace_block(page, "scores", "| new \\1 |")
    with pytest.raises(ValueError, match="other"):
        tables.replace_block(page, "other", "x")

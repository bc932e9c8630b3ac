"""Tables in CSV files: what is read, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steepest import _csv
from steepest.datasets import load_csv


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "t.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a,b\n1,2.5\n3,4\n", {"a": [1, 3], "b": [2.5, 4]}),
        ("1,2.5\n3,4\n", {"1": [1, 3], "2": [2.5, 4]}),
        ("5.1,fir\n4.9,oak\n", {"1": [5.1, 4.9], "2": ["fir", "oak"]}),
        ("a,b\nfir,x\noak,y\n", {"a": ["fir", "oak"], "b": ["x", "y"]}),
        ("fir,fir\noak,y\n", {"1": ["fir", "oak"], "2": ["fir", "y"]}),
        (',a\n0,1\n1,"2"\n', {"1": [0, 1], "a": [1, 2]}),
        ("0,1,label\n7,8,9\n", {"0": [7], "1": [8], "label": [9]}),
        ('a;b\r\n"1";"x;y"\r\n\r\n2; "say ""hi"""\r\n', {"a": [1, 2], "b": ["x;y", 'say "hi"']}),
        ('a\tb\n1\t"two\nlines"\n', {"a": [1], "b": ["two\nlines"]}),
        ("\ufeffa , b\n 1e3,-inf \n", {"a": [1000], "b": [-np.inf]}),
        ("a,b\n1_000,1\n", {"a": ["1_000"], "b": [1]}),
        ("größe\n3\n", {"größe": [3]}),
        ("a\n9007199254740993\n-9223372036854775808\n2.0\n", {"a": [2**53 + 1, -(2**63), 2]}),
        ("a\n9223372036854775808\n9223372036854775807\n", {"a": [2.0**63, 2.0**63]}),
        ("a\n9007199254740993\n1e300\n-inf\n", {"a": [2.0**53, 1e300, -np.inf]}),
        ("\n\r\na;b\n1;2\n", {"a": [1], "b": [2]}),
        ("\na\tb\n1\t2\n", {"a": [1], "b": [2]}),
    ],
)
def test_tables(tmp_path: Path, text: str, columns: dict[str, list[object]]) -> None:
    table = load_csv(write(tmp_path, text))
    assert {name: values.tolist() for name, values in table.items()} == columns
    assert list(table) == list(columns)


def test_types(tmp_path: Path) -> None:
    table = load_csv(write(tmp_path, "a,b,c\n1,1.5,x\n2.0,2,y\n"))
    assert [values.dtype.kind for values in table.values()] == ["i", "f", "U"]


def test_the_header_can_be_told(tmp_path: Path) -> None:
    path = write(tmp_path, "1990,1991\n1,2\n")
    assert load_csv(path)["1"].tolist() == [1990, 1]
    assert load_csv(path, header=True)["1990"].tolist() == [1]
    assert load_csv(write(tmp_path, "fir,oak\nelm,oak\n"), header=False)["1"].tolist() == ["fir", "elm"]


def test_ignored_columns_may_miss_values(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1,\n2,NA\n")
    assert list(load_csv(path, ignore=["b"])) == ["a"]
    with pytest.raises(ValueError, match="no column 'c'; the columns are a, b"):
        load_csv(path, ignore=["c"])


def test_large_whole_numbers_and_fractions_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_csv, "ROWS", 2)
    path = write(tmp_path, "a,b\n9007199254740993,1\n1,2\n3,9007199254740993\n0.5,4\n")
    table = load_csv(path)
    assert table["a"].tolist() == [2.0**53, 1, 3, 0.5] and table["a"].dtype == np.float64
    assert table["b"].tolist() == [1, 2, 2**53 + 1, 4] and table["b"].dtype == np.int64


@pytest.mark.parametrize("late", ["word", "NA", "1_0"])
def test_a_column_that_turns_out_otherwise_far_down(tmp_path: Path, late: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_csv, "ROWS", 3)
    path = write(tmp_path, "a,b\n" + "".join(f"{i},{i / 2}\n" for i in range(10)) + f"10,{late}\n")
    if late == "NA":
        with pytest.raises(ValueError, match=r"1 in column b \(the first in line 12\)"):
            load_csv(path)
        return
    table = load_csv(path)
    assert table["a"].tolist() == list(range(11))
    assert table["b"].tolist() == [*(str(i / 2) for i in range(10)), late]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,b\n", "there is no row below the names"),
        ("a,b\n1,2\n1,2,3\n", "line 3: expected 2 fields, as line 1 has, got 3"),
        ('\na,b\n1,"x\ny"\n\n5\n', "line 6: expected 2 fields, as line 2 has, got 1"),
        ('a,b\n1,"x\n', "line 2: unexpected end of data"),
        ('a,b\n1,"x"y\n', "line 2: .*expected after"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        ("a,b\n1,2\n,3\n4,?\nnan,1\n", r"2 in column a .*line 3\), 1 in column b \(the first in line 4\)"),
        ("a,b\n1,2\n-nan,3\n4,+NaN\n", r"1 in column a .*line 3\), 1 in column b \(the first in line 4\)"),
        ("a,b\nx,y\nN/A,y\n", r"1 in column a \(the first in line 3\)"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_csv(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_not_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a table in UTF-8 text"):
        load_csv(write(tmp_path, "größe\n1\n", "latin-1"))
    with pytest.raises(FileNotFoundError):
        load_csv(tmp_path / "nowhere.csv")

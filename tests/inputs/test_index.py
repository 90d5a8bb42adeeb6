"""CSV indices: paths stay inside, odd rows are named, a broken table is refused with its line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bdaudit.errors import ImageError, UnusedFiles
from bdaudit.inputs.folders import write_png
from bdaudit.inputs.index import MAX_LINE, list_index
from bdaudit.inputs.pool import UNKNOWN, Pool

CLASSES = ("cat", "dog, or so", "eel")
SHAPE = (1, 4, 4)


def index(folder: Path, text: str | bytes, *names: str) -> Path:
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(torch.full(SHAPE, value, dtype=torch.uint8), folder / name)
    path = folder / "index.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
    return path


def read(path: Path) -> Pool:
    return list_index(path).read(classes=CLASSES, shape=SHAPE)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_names_and_numbers_quoted_or_not_in_the_order_of_the_file(tmp_path: Path, mark: str, newline: str) -> None:
    lines = [mark + "Label, path ,split", '"dog, or so",b/é.png,x', "0,a.png,y", '2,"with, ""quotes"".bin",z']
    path = index(tmp_path, newline.join(lines), "a.png", "b/é.png", 'with, "quotes".bin'.replace(".bin", ".png"))
    (tmp_path / 'with, "quotes".png').rename(tmp_path / 'with, "quotes".bin')
    pool = read(path)
    assert pool.labels.tolist() == [1, 0, 2]
    assert pool.images[:, 0, 0, 0].tolist() == [1, 0, 2]
    assert pool.origin == ("b/é.png", "a.png", 'with, "quotes".bin')


@pytest.mark.parametrize("text", ["path\na.png\n", "path,label\na.png,\n"])
def test_without_labels_they_are_unknown(tmp_path: Path, text: str) -> None:
    assert read(index(tmp_path, text, "a.png")).labels.tolist() == [UNKNOWN]


def test_bytes_that_are_no_text_name_the_file_that_has_them(tmp_path: Path) -> None:
    assert len(read(index(tmp_path, b"path\n\xff\xfe.png\n", "\udcff\udcfe.png"))) == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("../secret.png", "outside the folder (1: ../secret.png)"),
        ("in/../../secret.png", "outside the folder (1: in/../../secret.png)"),
        ("/etc/hostname", "outside the folder (1: /etc/hostname)"),
        ("link.png", "a link (1: link.png)"),
        ("out/secret.png", "a link or no folder on the way (1: out/secret.png)"),
        ("missing.png", "no such file (1: missing.png)"),
        ("in", "not a file (1: in)"),
        ("./in//a.png", "named before (1: ./in//a.png)"),
        ("a\0b.png", "not a path (1: a\ufffdb.png)"),
        ("n" * 300, "cannot be opened (1: " + "n" * 39 + "…: File name too long)"),
        ('"a\nb"', "no such file (1: a\ufffdb)"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: str, expected: str) -> None:
    write_png(torch.zeros(SHAPE, dtype=torch.uint8), tmp_path / "secret.png")
    path = (
        index(tmp_path / "data", f"path\nin/a.png\n{row}\n", "in/a.png")
        if (tmp_path / "data").mkdir() is None
        else None
    )
    assert path is not None
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "out").symlink_to(tmp_path)
    with pytest.warns(UnusedFiles) as caught:
        assert len(read(path)) == 1
    assert len(caught) == 1
    message = str(caught[0].message)
    assert expected in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must name the columns: path,label"),
        ("file,class\na.png,cat\n", "it is 'file, class'"),
        ("path,path\n", "the first line must name"),
        ("path,label\n", "no images in it"),
        ("path,label\na.png\n", "line 2 has 1 fields, the first one 2"),
        ("path,label\na, b.png,cat\n", "line 2 has 3 fields"),
        ("path,label\na.png,wolf\n", "the model has no class 'wolf'"),
        ("path,label\na.png,7\n", "the model has no class '7'"),
        ('path,label\n"a.png,cat\nb.png,cat\n', "line 3: not CSV"),
        ('path,label\n"a"b.png,cat\n', "line 2: not CSV"),
        ("path\n" + "x" * MAX_LINE, "a line of more than 65,536 characters"),
        ('path\n"' + ("x" * 60_000 + "\n") * 3 + '"', "not CSV .field larger than field limit"),
    ],
)  # fmt: skip
def test_a_table_that_could_mislead_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read(index(tmp_path, text, "a.png"))
    assert str(caught.value).isprintable()


def test_a_label_of_thousands_of_digits_is_a_name(tmp_path: Path) -> None:
    assert list_index(index(tmp_path, f"path,label\na.png,{'9' * 5000}\n")).classes() == ("9" * 5000,)


def test_an_index_that_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        list_index(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        list_index(tmp_path / "x.csv")


names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda n: n not in (".", "..")
)


@given(st.lists(st.tuples(names, st.sampled_from(["", *CLASSES, "0", "2"])), max_size=8, unique_by=lambda r: r[0]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_csv_writes_is_listed_as_it_was(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("path", "label"), *rows])
    listed = list_index(index(tmp_path, text.getvalue()))
    assert listed.paths == [name for name, _ in rows]
    assert listed.labels == [label or None for _, label in rows]


@given(
    st.binary(max_size=200)
    | st.text(',"\n\r\0./apathlbe\ufeff', max_size=80).map(lambda t: ("path,label\n" + t).encode())
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_listing_of_inner_paths_or_one_error(tmp_path: Path, content: bytes) -> None:
    try:
        listed = list_index(index(tmp_path, content))
    except ImageError as e:
        assert str(e).isprintable()
        return
    assert len(listed.paths) == len(listed.labels) == len(set(listed.paths))
    for path in listed.paths:
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/"))

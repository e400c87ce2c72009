import logging
from pathlib import Path

import pytest

from interpret.errors import ImageError
from interpret.images import find_images
from interpret.labels import labels_from_folders, read_class_names, read_labels
from pictures import written


def test_labels_from_folders(tmp_path: Path) -> None:
    written(tmp_path, "dog/1.png", "cat/deep/2.png", "Great_Dane/3.png")
    paths = find_images(tmp_path)  # Great_Dane, cat, dog
    assert labels_from_folders(paths, tmp_path) == (0, 1, 2)
    assert labels_from_folders(paths, tmp_path, ["cat", "bird", "dog", "great dane"]) == (3, 0, 2)
    with pytest.raises(ImageError, match="folder 'dog': 'dog' is none of the 3 classes; did you mean 'dogs'"):
        labels_from_folders(paths, tmp_path, ["cat", "dogs", "great dane"])
    with pytest.raises(ImageError, match=r"'cat' names classes \[1, 2\]; give the number"):
        labels_from_folders(paths, tmp_path, ["great dane", "cat", "cat", "dog"])


def test_folders_without_class_names_are_numbered_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path, "cat/1.png", "dog/2.png")
    with caplog.at_level(logging.WARNING, "interpret"):
        labels_from_folders(find_images(tmp_path), tmp_path, ["cat", "dog"])
        assert not caplog.records
        labels_from_folders(find_images(tmp_path), tmp_path)
    assert "the 2 class folders are numbered from 0 in the order of their names; give class names" in caplog.text


def test_folders_may_be_class_numbers(tmp_path: Path) -> None:
    written(tmp_path, "1/a.png", "10/a.png")
    paths = find_images(tmp_path)
    names = [f"class {index}" for index in range(11)]
    assert labels_from_folders(paths, tmp_path, names) == (1, 10)
    assert labels_from_folders(paths, tmp_path, ["10", "1"]) == (1, 0)  # a name wins over a number
    with pytest.raises(ImageError, match="'10' is none of the 10 classes"):
        labels_from_folders(paths, tmp_path, names[:10])


def test_images_outside_class_folders(tmp_path: Path) -> None:
    paths = written(tmp_path, "loose.png")
    with pytest.raises(ImageError, match=r"loose\.png' lies in no class folder below .*expected .*/CLASS/image\.jpg"):
        labels_from_folders(paths, tmp_path)
    with pytest.raises(ImageError, match="lies in no class folder"):
        labels_from_folders(paths, tmp_path / "elsewhere")


NAMES = ("a/1.png", "b/1.png", "b/猫.png")


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, "utf-8")
    return path


def test_labels_from_csv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = csv_file(tmp_path, "\ufefffile,label,note\r\n./a/1.png,2,x\r\nb\\1.png,,y\r\n猫.png,0,z\r\n")
    assert read_labels(path, NAMES) == (2, None, 0)
    assert not caplog.records
    named = csv_file(tmp_path, 'file,label\na/1.png,"tench, Tinca tinca"\nb/1.png,Cat\nb/猫.png,1\nother.png,cat\n')
    with caplog.at_level(logging.WARNING, "interpret"):
        assert read_labels(named, NAMES, ["tench, Tinca tinca", "cat"]) == (0, 1, 1)
    assert "names 1 files that are not among the images: other.png" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\na/1.png,2\n", "must begin with the line 'file,label', not 'path,class'"),
        ("", "must begin with the line 'file,label'"),
        ("file,label\na/1.png,2\nb/2.png,1\n猫.png,1\n", r"no row for 1 of 3 images: b/1\.png; did you mean '[ab]/"),
        ("file,label\na/1.png,x\nb/1.png,1\n猫.png,1\n", r"label of 'a/1\.png' in .*: 'x' is no class number; give"),
        ("file,label\n1.png,0\n猫.png,1\n", "no row for 2 of 3 images"),
        ("a/1.png,2\nb/1.png,1\n", "must begin with the line 'file,label', not 'a/1.png,2'"),
        ("file,label\na/1.png,2\n./a/1.png,3\n", r"gives 'a/1.png' two labels, '2' and in line 3 '3'; leave one out"),
        ("file,label\na/1.png,2\na/1.png,\n", "two labels, '2' and in line 3 ''"),
        (
            "file,label\n/data/val/a/1.png,2\n/data/val/b/1.png,0\n",
            r"no row for any of the 3 images; its column .* such as 'a/1\.png', not '/data/val/a/1\.png'",
        ),
        ("file,label\n", r"no row for any of the 3 images; .* such as 'a/1\.png'$"),
        ("file,label\na/1.png,-1\nb/1.png,0\n猫.png,0\n", "'-1' is no class number"),
        (f"file,label\na/1.png,{'9' * 5000}\nb/1.png,0\n猫.png,0\n", "is no class number"),
        (f"file,label\na/1.png,{'x' * 200_000}\n", r"cannot be read as CSV: field larger .*\(after line 1\)"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_labels(csv_file(tmp_path, text), NAMES)


def test_label_beyond_the_classes(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "file,label\nx.png,2\n")
    with pytest.raises(ImageError, match=r"'2' is none of the 2 classes \(0 to 1\)"):
        read_labels(path, ["x.png"], ["cat", "dog"])
    with pytest.raises(ImageError, match=r"none\.csv' cannot be read: No such file"):
        read_labels(tmp_path / "none.csv", ["x.png"])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_tables_as_spreadsheets_save_them(tmp_path: Path, separator: str, encoding: str, ending: str) -> None:
    lines = (("File", " label "), ("a/1.png", "2.0"), ("a/1.png", "2.0"), ("b/1.png", ""), ("猫.png", "0"))
    text = ending.join(separator.join(line) for line in lines)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    assert read_labels(tmp_path / "labels.csv", NAMES) == (2, None, 0)


def test_text_in_other_encodings_says_where(tmp_path: Path) -> None:
    for name in ("labels.csv", "classes.txt"):
        (tmp_path / name).write_bytes("file,label\ncafé.png,0\n".encode("latin-1"))
    with pytest.raises(ImageError, match=r"labels\.csv' cannot be read as UTF-8 text: .* in line 2; save it as UTF-8"):
        read_labels(tmp_path / "labels.csv", ["x.png"])
    with pytest.raises(ImageError, match=r"classes\.txt' cannot be read as UTF-8 text"):
        read_class_names(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog, hound\n猫\n\n",
        '["cat", "dog, hound", "猫"]',
        '{"0": "cat", "2": "猫", "1": "dog, hound"}',
        '{"cat": 0, "猫": 2, "dog, hound": 1}',
        '{"0": ["n01", "cat"], "1": ["n02", "dog, hound"], "2": ["n03", "猫"]}',
    ],
)
def test_class_names(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes"
    path.write_text(text, "utf-8-sig")
    assert read_class_names(path) == ("cat", "dog, hound", "猫")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ndog", "one class name per line; line 2 is empty"),
        (" ", "is empty; it must hold one class name per line"),
        ("[]", "must hold class names"),
        ("[1, 2]", "must hold class names as text"),
        ('{"0": "cat", "2": "dog"}', "must be numbered 0, 1, 2, ... without a gap"),
        ('{"a": "cat"}', "must be numbered"),
        ('{"cat": 1, "dog": 1}', "must be numbered"),
        ('{"cat": 0, "dog": 0}', "must be numbered"),
        ('["cat"', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_class_names_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(ImageError, match=message):
        read_class_names(path)

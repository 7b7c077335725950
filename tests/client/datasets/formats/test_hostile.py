"""A dataset of a stranger cannot make the client read other files, or exhaust it: one line of error
names the cause.
"""

import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diptych_client.datasets import dataset as dataset_files
from diptych_client.datasets.dataset import read_lines, read_xml
from diptych_client.datasets.formats.reading import read_dataset
from diptych_client.datasets.inputs import Folder, Problems, path_within
from diptych_client.datasets.long_runs import RunError
from tests.support.evaluations import write_images, write_voc

OUTSIDE = ["/etc/passwd", "../secret.png", "../data2/a.png", "images/../../secret.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a dataset, beside a private image."""
    write_images(tmp_path / "data" / "images")
    os.link(tmp_path / "data" / "images" / "a.png", tmp_path / "secret.png")
    return tmp_path / "data"


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("x.json", '{"images": [{"id": 1, "file_name": "NAME"}]}'),
        ("x.jsonl", '{"image": "NAME"}'),
        ("metadata.jsonl", '{"file_name": "NAME"}'),
        ("Annotations/a.xml", "<annotation><filename>NAME</filename></annotation>"),
        ("list.txt", "NAME\n"),
        ("data.yaml", '{"names": ["a"], "val": ["NAME"]}'),
    ],
)
def test_image_outside_is_refused(file: str, text: str, folder: Path, name: str) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(text.replace("NAME", name))
    if file == "list.txt":
        (folder / "data.yaml").write_text('{"names": ["a"], "val": "list.txt"}')
    message = "leads outside this folder|must be in the folder of its data|is in none of"
    with pytest.raises(RunError, match=message) as refused:
        read_dataset(folder / file if file.startswith("x.") else folder)
    assert "\n" not in str(refused.value)


def test_yolo_path_outside_is_not_followed(folder: Path) -> None:
    write_images(folder.parent / "private" / "photos")
    text = json.dumps({"path": str(folder.parent / "private"), "names": [], "val": "photos"})
    (folder / "data.yaml").write_text(text)
    with pytest.raises(RunError, match=r"must be in the folder of its data\.yaml"):
        read_dataset(folder)


@pytest.mark.parametrize("name", OUTSIDE)
def test_arrow_row_outside_is_refused(folder: Path, name: str) -> None:
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [{"image": {"bytes": None, "path": name}}]
    table = pyarrow.Table.from_pylist(rows, pyarrow.schema([("image", image)]))
    pyarrow.parquet.write_table(table, folder / "x.parquet")
    dataset = read_dataset(folder / "x.parquet")
    with pytest.raises(RunError, match="leads outside this folder"):
        dataset.store.read(dataset.images[0].image)


def test_voc_split_outside_is_refused(folder: Path) -> None:
    write_voc(folder)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("../../x\n")
    with pytest.raises(RunError, match="leads outside this folder"):
        read_dataset(folder, split="val")


def test_link_is_followed_to_images_only(folder: Path) -> None:
    (folder / "moved").symlink_to(folder.parent)
    (folder / "passwd.png").symlink_to("/etc/passwd")
    store = Folder(folder)
    data = (folder.parent / "secret.png").read_bytes()
    assert store.read(store.image("moved/secret.png")) == data
    with pytest.raises(OSError, match="must be a JPEG, PNG, WebP"):
        store.read(store.image("passwd.png"))


def test_name_is_within_a_relative_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert path_within(Path(), "images/a.png") == folder / "images" / "a.png"
    base64 = "data:image/png;base64," + "A" * 9999
    for name in ("../secret.png", "", 1, ["a.png"], "a\0.png", base64):
        with pytest.raises(RunError) as caught:
            Folder(Path()).image(name)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 999


DEEP = 200_000
BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 'x'}]\n" for i in range(12))
ENTITIES = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "x"}">' for i in range(12))
IMAGES = {
    "images": [{"id": 1, "file_name": "images/a.png"}],
    "categories": [{"id": 1, "name": "c"}],
}


def annotated(**annotation: object) -> str:
    return json.dumps({**IMAGES, "annotations": [{"image_id": 1, "category_id": 1, **annotation}]})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "[" * DEEP, "nested too deeply"),
        ("x.json", json.dumps({**IMAGES, "categories": 1}), "is not COCO: TypeError"),
        ("x.json", "1" * 5000, "not readable as JSON"),
        ("x.json", annotated(bbox=[1, 2, 3]), "annotation 1: not enough values"),
        ("x.json", annotated(bbox=[10**400, 2, 3, 4]), "annotation 1: int too large"),
        ("x.json", annotated(bbox=[1, 2, 3, 4], category_id=[]), "annotation 1: unhashable"),
        ("x.jsonl", "[" * DEEP, "line 1: expected an object"),
        ("x.yaml", "[" * DEEP, "nested too deeply"),
        ("x.yaml", f"{BOMB}names: [*a11]\nval: images\n", "an alias is not allowed"),
        ("x.yaml", "names: {a: b}\nval: images", "is not a YOLO dataset"),
        (
            "Annotations/x.xml",
            f"<!DOCTYPE a [{ENTITIES}]><annotation>&e11;</annotation>",
            "a document type",
        ),
        ("x.json", "[]", "it has no list `images`"),
        ("x.json", '{"images": [{"id": 1, "file_name": "z"}]}', "give its folder with --images"),
        ("x.json", "", "x.json is not readable as JSON: Expecting value"),
        ("x.jsonl", '{"image": "images/a.png"}\n{}', "line 2: expected an object with `image`"),
        ("x.yaml", "a: 1", "it has no `names`"),
        ("x.xml", "<a/>", "expected a file of YOLO, Pascal VOC"),
        ("x.txt", "", "expected a file of"),
        ("x.csv", "image," * 1001 + "\n", "at most 1000 columns"),
        ("x.csv", f'image,text\na.png,"{"x" * 200_000}"\n', "field larger than field limit"),
        ("x.csv", f'"{"x" * 200_000}"', "must have a column image, file_name"),
        ("x.csv", "name,text\na.png,x\n", "must have a column image, file_name"),
    ],
    ids=lambda value: value[:20],
)
def test_bad_file_is_one_line_of_error(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    strict = Problems(is_strict=True)
    with pytest.raises(RunError, match=message) as refused:
        read_dataset(folder if "/" in name else folder / name, problems=strict)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("name", "max_bytes"),
    [("x.yaml", dataset_files.MAX_YAML_BYTES), ("Annotations/x.xml", dataset_files.MAX_XML_BYTES)],
)
def test_file_size_is_bounded(folder: Path, name: str, max_bytes: int) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("wb") as file:
        file.truncate(max_bytes + 1)
    with pytest.raises(RunError, match=f"is larger than {max_bytes:,} bytes"):
        read_dataset(folder if "/" in name else folder / name)


def test_lengths_and_depths_are_bounded(tmp_path: Path) -> None:
    with (tmp_path / "x.jsonl").open("wb") as file:
        file.truncate(dataset_files.MAX_LINE_BYTES + 1)
    with pytest.raises(RunError, match="line 1: longer than 50,000,000 bytes"):
        next(read_lines(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl").write_bytes(b"\n a \n\xff\n")
    lines = read_lines(tmp_path / "x.jsonl")
    assert next(lines) == (2, "a")
    with pytest.raises(RunError, match="not text in UTF-8"):
        next(lines)
    path = tmp_path / "x.xml"
    path.write_text("<a>" * 31 + "<b/>" * 100 + "</a>" * 31)  # deep, and wide
    assert read_xml(path).tag == "a"
    path.write_text("<a>" * 33 + "</a>" * 33)
    with pytest.raises(RunError, match="nested deeper than 32"):
        read_xml(path)

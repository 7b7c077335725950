import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from offline.filesystems import InputError
from offline.output import (
    COCO_NAME,
    Attempt,
    Job,
    Output,
    OutputFormat,
    Row,
    RowError,
    write_coco,
)
from tasks.run_length import encode_mask

BUILD = {"model": "m", "build_key": "b", "calibration": None, "max_image_pixels": 1_000_000}
JOB = Job(BUILD, {"task": "object_detection"}, "parquet", shard_size=2, num_shards=2, images="d")
BOXES = {"detections": [{"box": [1.5, 2.0, 11.5, 22.0], "label": "größer", "score": 0.5}]}
RLE = {"size": [4, 4], "counts": encode_mask(np.eye(4, dtype=np.bool_)).counts}
MASK = {"instances": [{"box": [0.0, 0.0, 4.0, 4.0], "label": "", "score": 1.0, "mask": RLE}]}
ANSWERED = Row("a.jpg", "m", "object_detection", 64, 48, BOXES, "größer<loc_1>", "stop", True)
ERROR = RowError("unsupported_image", "the image cannot be read")
FAILED = Row("b.jpg", "m", "object_detection", error=ERROR)


@pytest.mark.parametrize("output_format", ["parquet", "jsonl"])
def test_rows_are_read_as_they_were_written(tmp_path: Path, output_format: OutputFormat) -> None:
    output = Output(str(tmp_path / "out"), replace(JOB, output_format=output_format))
    assert output.begin() == frozenset()
    output.write_shard(1, [ANSWERED])
    output.write_shard(0, [FAILED, replace(ANSWERED, key="c.jpg")])
    assert list(output.rows()) == [FAILED, replace(ANSWERED, key="c.jpg"), ANSWERED]
    assert output.counts() == (3, 1)
    assert output.begin() == {0, 1}


def test_incomplete_shard_is_absent(tmp_path: Path) -> None:
    output = Output(str(tmp_path), JOB)
    output.begin()

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        output.write("part-00000000.parquet", interrupted)
    assert len(list((tmp_path / ".incomplete").iterdir())) == 1
    assert output.begin() == frozenset()
    assert not (tmp_path / ".incomplete").exists()
    (tmp_path / ".incomplete").mkdir()
    assert Output(str(tmp_path), JOB).begin() == frozenset()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"task": "ocr"}}, '"object_detection"}, now {"task": "ocr"}'),
        ({"build": BUILD | {"calibration": "d"}}, 'calibration: null, now "d"'),
        (
            {"build": BUILD | {"max_image_pixels": 2, "decoder_max_positions": 9}},
            "1000000, now 2; decoder_max_positions:",
        ),
        ({"shard_size": 3, "num_shards": 1}, "shard_size: 2, now 3; num_shards: 2, now 1"),
        ({"images": "e"}, 'images: "d", now "e"'),
        ({"output_format": "jsonl"}, "output_format"),
    ],
)
def test_output_of_another_job_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    Output(str(tmp_path), JOB).begin()
    with pytest.raises(InputError) as refused:
        Output(str(tmp_path), replace(JOB, **changes)).begin()  # type: ignore[arg-type]
    assert message in str(refused.value)
    document = json.loads(JOB.manifest()) | {"seed": 1}
    (tmp_path / "job.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"another job \(seed: 1, now null\)"):
        Output(str(tmp_path), JOB).begin()
    (tmp_path / "job.json").write_text("nonsense")
    with pytest.raises(InputError, match="not a manifest"):
        Output(str(tmp_path), JOB).begin()


def test_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    part = tmp_path / "part-00000000.parquet"
    part.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"choose an empty folder.* give --overwrite to replace"):
        Output(str(tmp_path), JOB).begin()
    assert list(tmp_path.iterdir()) == [part]
    assert Output(str(tmp_path), JOB, overwrite=True).begin() == frozenset()  # it is no shard


def test_coco_reads_all_shards(tmp_path: Path) -> None:
    output = Output(str(tmp_path), replace(JOB, output_format="coco"))
    output.begin()
    output.write_shard(0, [FAILED, ANSWERED])
    output.write_shard(1, [replace(ANSWERED, key="c.jpg", width=4, height=4, result=MASK)])
    write_coco(output)
    coco = COCO(str(tmp_path / COCO_NAME))
    names = {number: image["file_name"] for number, image in coco.imgs.items()}
    assert names == {2: "a.jpg", 3: "c.jpg"}
    categories = {number: category["name"] for number, category in coco.cats.items()}
    assert categories == {1: "größer", 2: "object"}
    box, mask = coco.loadAnns([1, 2])
    assert (box["image_id"], box["bbox"]) == (2, [1.5, 2.0, 10.0, 20.0])
    assert (box["area"], box["score"]) == (200.0, 0.5)
    assert int(coco.annToMask(mask).sum()) == mask["area"] == 4
    assert json.loads((tmp_path / "job.json").read_text())["num_shards"] == 2


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """An output whose folder's name is a pattern, too."""
    output = Output(str(tmp_path / "out[1]"), JOB)
    output.begin()
    return output


def test_attempts_count_deaths_and_end(output: Output) -> None:
    """They are counted per image and shard; a resumed run begins with none."""
    numbers = []
    for positions in ([], [11, 12], [12], [12]):
        attempt = Attempt.begin(output, 3)
        numbers.append((attempt.number, dict(attempt.deaths)))
        for position in positions:
            attempt.record(position)
    assert numbers == [(1, {}), (2, {}), (3, {12: 1}), (4, {12: 2})]
    assert Attempt.begin(output, 30).number == 1
    assert output.begin() == frozenset()
    assert Attempt.begin(output, 3) == Attempt(output, 3)
    attempts = [Attempt.begin(output, 0) for _ in range(3)]
    attempts[1].end()
    attempts[2].end()
    assert not list((Path(output.uri) / ".incomplete").glob("part-00000000*"))
    assert Attempt.begin(output, 0).number == 1

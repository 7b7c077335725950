"""Results that a format accepts, the order of classes, and JSON lines."""

import json
from pathlib import Path

import pytest

from diptych_client import AnswerOptions, Detection, DetectionsResult, TaskParameters
from diptych_client.evaluation.formats.writing import (
    DatasetFormat,
    check_format,
    class_indices,
    write_dataset,
)
from diptych_client.evaluation.job import Job
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import Outputs, RunError
from diptych_client.transports.rest_messages import answer_from_json
from tests.support.client_answers import DETECTIONS, TEXT, record

JOB = Job("captioning", "some-model", TaskParameters(), AnswerOptions())


def test_json_lines_have_one_line_for_each_image(tmp_path: Path) -> None:
    records = [record(TEXT, "a.png"), record(TEXT, "sub/b.png")]
    with Outputs(tmp_path) as outputs:
        path = write_dataset(DatasetFormat.jsonl, outputs, tmp_path, records, JOB)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a.png", "sub/b.png"]
    assert [answer_from_json(line["answer"]) for line in lines] == [each.answer for each in records]
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"answers.jsonl", "written.jsonl"}


@pytest.mark.parametrize("dataset_format", [DatasetFormat.coco, DatasetFormat.yolo])
@pytest.mark.parametrize("result", ["text", "text_regions"])
def test_coco_and_yolo_reject_results_without_boxes(
    dataset_format: DatasetFormat, result: str
) -> None:
    with pytest.raises(RunError, match="use --format jsonl"):
        check_format(dataset_format, result, [])
    check_format(DatasetFormat.jsonl, result, [])


def test_only_yolo_requires_distinct_names_without_suffix() -> None:
    images = [ImageFile("a.png", 1, 1), ImageFile("a.jpg", 1, 1)]
    check_format(DatasetFormat.coco, "detections", images)
    with pytest.raises(RunError):
        check_format(DatasetFormat.yolo, "detections", images)


def test_requested_labels_come_first_and_the_others_by_name() -> None:
    assert class_indices([record(DETECTIONS)], ()) == {"circle": 0, "star": 1}
    assert class_indices([record(DETECTIONS)], ("tree", "star")) == {
        "tree": 0,
        "star": 1,
        "circle": 2,
    }


def test_boxes_without_a_label_share_one_class() -> None:
    assert class_indices([record(DetectionsResult((Detection((1, 1, 2, 2), "", 0.5),)))], ()) == {
        "object": 0
    }

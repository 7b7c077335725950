"""Steps in an offline run: their file, and the rows of images."""

from functools import partial
from pathlib import Path

import pytest

from offline.analyses import read_steps
from offline.answering import Answerer
from offline.filesystems import InputError
from offline.shards import InputImage
from tests.offline.test_answering import images, run, shard
from tests.support.catalog import FLORENCE
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS


def test_the_row_of_an_image_has_the_answers_of_all_steps(tmp_path: Path) -> None:
    path = tmp_path / "steps.yaml"
    path.write_text(
        "- {id: things, task: object_detection}\n"
        "- {id: close, task: ocr, each: things, view: crop}\n"
    )

    async def work(answerer: Answerer) -> None:
        rows = await answerer.rows(shard(*images(1), InputImage("text", partial(bytes, b"text"))))
        assert [(row.key, row.task) for row in rows] == [("0", "analyze"), ("text", "analyze")]
        assert (rows[0].width, rows[0].height) == (640, 480)
        things, close = (rows[0].result or {})["steps"]
        (found,) = things["answers"][0]["result"]["detections"]
        (answer,) = close["answers"]
        expected = {
            "of": 0,
            "view": [38, 77, 346, 308],
            "model": FLORENCE.id,
            "result": {"text": "HELLO"},
            "raw_text": "HELLO",
            "finish_reason": "stop",
            "calibrated": False,
        }
        assert (found["label"], answer) == ("red circle", expected)
        assert rows[1].error is not None
        assert rows[1].error.code == "unsupported_image"

    run(work, FakeDecoder(FLORENCE_ANSWERS), steps=read_steps(str(path), FLORENCE.id))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("things", "must have steps: a list of objects"),
        ("[{", "cannot be read"),
        ("[{id: a, task: ocr, models: all}]", "step 'a' names 'all'; one model answers: florence"),
        ("[{id: a, task: ocr, model: b}]", "step 'a' names 'b'; one model answers: florence"),
    ],
)
def test_a_file_without_steps_for_the_model_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "steps.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_steps(str(path), FLORENCE.id)

"""A card of the gallery as data of the page."""

import io
from base64 import b64decode
from pathlib import Path

from PIL import Image

from diptych_client import AnswerOptions, DetectionsResult, TaskParameters
from diptych_client.evaluation.evaluator import RankedSample
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.evaluation.questions import AnswerLog, Prompts, Questionnaire
from diptych_client.evaluation.report.gallery import Gallery
from diptych_client.geometry import ImageSize
from tests.support.client_answers import answer


def test_a_card_has_a_small_image_the_size_of_the_whole_one_and_short_numbers(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (1000, 500)).save(tmp_path / "a.png")
    dataset = read_dataset(tmp_path)
    questionnaire = Questionnaire("object_detection", TaskParameters(), Prompts(), dataset.classes)
    (sample,) = questionnaire.samples(dataset)
    with AnswerLog.open(tmp_path / "answers.jsonl", "object_detection", AnswerOptions()) as log:
        (question,) = log.requests([sample], "model")
        log.append(question, answer(DetectionsResult(()), ImageSize(1000, 500)), 0.1, 1)
        gallery = Gallery(dataset.store, log, questionnaire.names, ["model"])
        card = gallery.card(sample, RankedSample(0, 2 / 3, 1 / 3, 0.0, frozenset(), frozenset()))
    assert (card["width"], card["height"]) == (1000, 500)
    assert (card["error"], card["disagreement"]) == (0.667, 0.333)
    kind, _, data = card["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(b64decode(data))).size == (400, 200)

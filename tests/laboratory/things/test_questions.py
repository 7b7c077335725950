from itertools import chain

import pytest

from export.scenes.truth import DetectionsTruth, TextTruth
from laboratory.things import sample_things, thing_questions
from laboratory.things.questions import detailed_caption, short_caption
from tests.support.drawn_material import DrawnMaterial

MATERIAL = DrawnMaterial()
SCENES = [sample_things(seed, MATERIAL) for seed in range(40)]


def test_spans_join_to_the_text() -> None:
    for scene in SCENES:
        for asked in thing_questions(scene):
            if isinstance(asked.question.truth, TextTruth):
                assert "".join(span.text for span in asked.spans) == asked.question.truth.text


def test_an_absent_label_fits_no_thing_and_is_often_a_lookalike() -> None:
    num_lookalikes = 0
    for scene in SCENES:
        for asked in thing_questions(scene):
            if asked.question.name.startswith("open_vocabulary_detection absent"):
                assert asked.question.truth == DetectionsTruth(())
                label = asked.question.parameters["labels"][0]
                assert all(label not in placed.thing.labels for placed in scene.things)
                num_lookalikes += asked.question.name.endswith("lookalike")
    assert num_lookalikes


def test_a_kind_finds_every_thing_of_it() -> None:
    for scene in SCENES:
        for asked in thing_questions(scene):
            if asked.question.name == "open_vocabulary_detection kind":
                kind = asked.question.parameters["labels"][0]
                expected = [p.box_xyxy for p in scene.things if kind in p.thing.kinds]
                assert isinstance(asked.question.truth, DetectionsTruth)
                assert [box.box_xyxy for box in asked.question.truth.boxes] == expected


@pytest.mark.parametrize("words", [" left of ", " above ", "two ", " with text"])
def test_short_captions_relate_count_and_mention_text(words: str) -> None:
    spans = chain.from_iterable(map(short_caption, SCENES))
    assert words in "".join(span.text for span in spans)


def test_detailed_captions_read_the_lines_in_order() -> None:
    for scene in SCENES:
        caption = "".join(span.text for span in detailed_caption(scene))
        text = " ".join(line.text for line in scene.lines)
        assert caption.endswith(f" The text says {text}." if text else ".")

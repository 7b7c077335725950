"""Questions about hand-made scenes with their answers, and invariants over many seeds."""

import pytest

from diptych_client.geometry import BoxXyxy
from diptych_client.results import Result, TextResult, box_of, items_of, label_of
from export.scenes import Background, Scene, SceneObject, Word, box_xyxy, sample_scene
from laboratory.questions import Question, detailed_caption, questions, short_caption

DARK = Background("dark", "plain", (40, 40, 40), (40, 40, 40), 0.0, 4, 0)
CIRCLE = SceneObject("red", "circle", "small", (218, 38, 38), (30.0, 40.0), 12.0)
SQUARE = SceneObject("blue", "square", "large", (38, 78, 222), (90.0, 40.0), 24.0)
STAR = SceneObject("orange", "star", "small", (245, 138, 25), (150.0, 120.0), 15.0)
OTHER_CIRCLE = SceneObject("green", "circle", "small", (38, 165, 60), (90.0, 90.0), 12.0)
STOP = Word("STOP", "bold", 24, (20.0, 150.0, 90.0, 168.0))


def by_name(scene: Scene) -> dict[str, Question]:
    return {question.name: question for question in questions(scene)}


def boxes(truth: Result) -> list[tuple[str, BoxXyxy]]:
    return [(label_of(item), box_of(item)) for item in items_of(truth)]


@pytest.mark.parametrize(
    ("objects", "word", "short", "detailed"),
    [
        (
            (CIRCLE, SQUARE),
            STOP,
            "a red circle and a blue square with text",
            "two shapes on a dark background: a small red circle and a large blue square."
            " The text says STOP.",
        ),
        (
            (CIRCLE, SQUARE, STAR),
            None,
            "a red circle, a blue square and an orange star",
            "three shapes on a dark background: a small red circle, a large blue square and a"
            " small orange star.",
        ),
        ((STAR,), None, "an orange star", "one shape on a dark background: a small orange star."),
        ((), STOP, "text", "no shapes on a dark background. The text says STOP."),
        ((), None, "", "no shapes on a dark background."),
    ],
)
def test_captions_are_worded_exactly(
    objects: tuple[SceneObject, ...], word: Word | None, short: str, detailed: str
) -> None:
    scene = Scene(0, DARK, objects, word)
    assert short_caption(scene) == short
    assert detailed_caption(scene) == f"The image shows {detailed}"


def test_questions_about_a_scene_have_its_answers() -> None:
    about = by_name(Scene(0, DARK, (CIRCLE, SQUARE), STOP))
    for name, labels in {
        "object_detection": ("circle", "square"),
        "dense_region_captioning": ("small red circle", "large blue square"),
        "region_proposal": ("", ""),
        "phrase_grounding caption": ("a red circle", "a blue square"),
    }.items():
        first, second = boxes(about[name].truth)
        assert first == (labels[0], (18.0, 28.0, 42.0, 52.0))
        assert second == (labels[1], (66.0, 16.0, 114.0, 64.0))
    assert about["ocr"].truth == TextResult("STOP")
    (word,) = items_of(about["ocr_with_regions"].truth)
    assert (label_of(word), box_of(word)) == ("STOP", (20.0, 150.0, 90.0, 168.0))
    text = about["region_description text"]
    assert text.parameters == {"detail": "text", "region": [20.0, 150.0, 90.0, 168.0]}
    assert text.truth == TextResult("STOP")


def test_image_without_object_or_word_has_empty_answers() -> None:
    about = by_name(Scene(0, DARK, (), None))
    for name in ("object_detection", "region_proposal", "open_vocabulary_detection no object"):
        assert boxes(about[name].truth) == []
    assert about["ocr"].truth == TextResult("")
    assert boxes(about["ocr_with_regions"].truth) == []
    assert not about.keys() & {
        "region_description text",
        "region_description category",
        "instance_segmentation phrase",
        "open_vocabulary_detection absent",
    }


def test_free_questions_and_their_answers() -> None:
    answers = {}
    for question in questions(Scene(0, DARK, (STAR,), STOP)):
        if question.task == "visual_question_answering":
            assert isinstance(question.truth, TextResult)
            answers[question.parameters["question"]] = question.truth.text
    expected = {
        "what color is the star?": "orange",
        "is there an orange star?": "yes",
        "how many shapes are there?": "1",
        "what does the text say?": "STOP",
    }
    assert expected.items() <= answers.items()
    assert sorted(answers.values()) == ["1", "STOP", "no", "orange", "yes"]
    # two circles have no one colour
    twice = by_name(Scene(0, DARK, (CIRCLE, OTHER_CIRCLE), None))
    assert "visual_question_answering color" not in twice


@pytest.mark.parametrize("seed", range(0, 100, 5))
def test_labels_expect_every_box_of_theirs(seed: int) -> None:
    """An absent label expects none."""
    scene = sample_scene(seed)
    assert list(questions(scene)) == list(questions(scene))
    about = by_name(scene)
    assert len({question.task for question in about.values()}) == 11
    names = [drawn.name for drawn in scene.objects]
    absent = about["open_vocabulary_detection absent"]
    assert boxes(absent.truth) == []
    assert absent.parameters["labels"] not in [[name] for name in names]
    several = boxes(about["open_vocabulary_detection several"].truth)
    assert sorted(label for label, _ in several) == sorted(names)
    of_shape = about["open_vocabulary_detection shape"]
    shape = of_shape.parameters["labels"][0]
    drawn_boxes = [box_xyxy(drawn) for drawn in scene.objects if drawn.shape == shape]
    assert drawn_boxes
    assert boxes(of_shape.truth) == [(shape, box) for box in drawn_boxes]


def test_scaling_stretches_truth_and_region() -> None:
    scaled = {}
    for name, question in by_name(Scene(0, DARK, (SQUARE,), STOP)).items():
        scaled[name] = question.scaled((384, 96))
    region = scaled["instance_segmentation region"]
    box = (132.0, 8.0, 228.0, 32.0)
    assert region.parameters["region"] == list(box)
    assert [box_of(item) for item in items_of(region.truth)] == [box]
    assert boxes(scaled["object_detection"].truth) == [("square", box)]
    assert boxes(scaled["ocr_with_regions"].truth) == [("STOP", (40.0, 75.0, 180.0, 84.0))]
    assert scaled["captioning short"].truth == TextResult("a blue square with text")

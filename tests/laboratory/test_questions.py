"""Wording and geometry of questions about hand-made scenes, and invariants over many seeds."""

import pytest

from diptych_client.matching import LabelledBox
from export.scenes import (
    STAR_INNER_RADIUS,
    Background,
    Scene,
    SceneObject,
    Shape,
    Word,
    box_xyxy,
    polygon_xy,
    sample_scene,
)
from laboratory.questions import (
    DetectionsTruth,
    InstancesTruth,
    QuadText,
    Question,
    TextRegionsTruth,
    TextTruth,
    detailed_caption,
    object_phrases,
    questions,
    short_caption,
)

DARK = Background("dark", "plain", (40, 40, 40), (40, 40, 40), 0.0, 4, 0)
CIRCLE = SceneObject("red", "circle", "small", (218, 38, 38), (30.0, 40.0), 12.0)
SQUARE = SceneObject("blue", "square", "large", (38, 78, 222), (90.0, 40.0), 24.0)
STAR = SceneObject("orange", "star", "small", (245, 138, 25), (150.0, 120.0), 15.0)
STOP = Word("STOP", "bold", 24, (20.0, 150.0, 90.0, 168.0))


def named(scene: Scene, name: str) -> Question:
    (question,) = (question for question in questions(scene) if question.name == name)
    return question


@pytest.mark.parametrize(
    ("objects", "word", "short", "detailed"),
    [
        (
            (CIRCLE, SQUARE),
            STOP,
            "a red circle and a blue square with text",
            (
                "The image shows two shapes on a dark background: a small red circle and a large"
                " blue square. The text says STOP."
            ),
        ),
        (
            (CIRCLE, SQUARE, STAR),
            None,
            "a red circle, a blue square and an orange star",
            (
                "The image shows three shapes on a dark background: a small red circle, a large"
                " blue square and a small orange star."
            ),
        ),
        (
            (STAR,),
            None,
            "an orange star",
            "The image shows one shape on a dark background: a small orange star.",
        ),
        ((), STOP, "text", "The image shows no shapes on a dark background. The text says STOP."),
        ((), None, "", "The image shows no shapes on a dark background."),
    ],
)
def test_captions_are_worded_exactly(
    objects: tuple[SceneObject, ...], word: Word | None, short: str, detailed: str
) -> None:
    scene = Scene(0, DARK, objects, word)
    assert (short_caption(scene), detailed_caption(scene)) == (short, detailed)


def test_polygons_have_the_points_of_their_shape_from_the_top() -> None:
    assert len(polygon_xy(CIRCLE)) == 12
    assert polygon_xy(CIRCLE)[0] == (30.0, 28.0)
    # clockwise: right comes before bottom
    assert polygon_xy(CIRCLE)[3] == pytest.approx((42.0, 40.0))
    assert polygon_xy(SQUARE) == ((66.0, 16.0), (114.0, 16.0), (114.0, 64.0), (66.0, 64.0))
    assert len(polygon_xy(STAR)) == 10
    assert polygon_xy(STAR)[0] == (150.0, 105.0)
    assert polygon_xy(STAR)[5] == pytest.approx((150.0, 120.0 + 15.0 * STAR_INNER_RADIUS))


def test_triangle_is_as_wide_as_high() -> None:
    triangle = SceneObject("green", "triangle", "large", (38, 165, 60), (80.0, 80.0), 25.0)
    assert box_xyxy(triangle) == (55.0, 55.0, 105.0, 105.0)
    assert polygon_xy(triangle)[0] == (80.0, 55.0)


def test_labels_of_each_detection_task() -> None:
    scene = Scene(0, DARK, (CIRCLE, SQUARE), STOP)
    circle = (18.0, 28.0, 42.0, 52.0)
    square = (66.0, 16.0, 114.0, 64.0)
    labels = {
        "object_detection": ("circle", "square"),
        "dense_region_captioning": ("small red circle", "large blue square"),
        "region_proposal": ("", ""),
        "phrase_grounding caption": ("a red circle", "a blue square"),
    }
    for name, (first, second) in labels.items():
        truth = named(scene, name).truth
        assert isinstance(truth, DetectionsTruth)
        assert truth.boxes[1] == LabelledBox(second, square)
        assert truth.boxes[0].label == first
        assert truth.boxes[0].box_xyxy == pytest.approx(circle)


def test_word_is_read_with_its_quad_from_the_top_left_clockwise() -> None:
    scene = Scene(0, DARK, (CIRCLE,), STOP)
    quad = ((20.0, 150.0), (90.0, 150.0), (90.0, 168.0), (20.0, 168.0))
    assert named(scene, "ocr").truth == TextTruth("STOP")
    assert named(scene, "ocr_with_regions").truth == TextRegionsTruth((QuadText("STOP", quad),))
    text = named(scene, "region_description text")
    assert text.parameters == {"detail": "text", "region": [20.0, 150.0, 90.0, 168.0]}
    assert text.truth == TextTruth("STOP")


def test_image_without_object_or_word_has_empty_answers() -> None:
    scene = Scene(0, DARK, (), None)
    for name in ("object_detection", "region_proposal", "open_vocabulary_detection no object"):
        assert named(scene, name).truth == DetectionsTruth(())
    assert named(scene, "ocr").truth == TextTruth("")
    assert named(scene, "ocr_with_regions").truth == TextRegionsTruth(())
    assert not {question.name for question in questions(scene)} & {
        "region_description text",
        "region_description category",
        "instance_segmentation phrase",
        "open_vocabulary_detection absent",
    }


def test_free_questions_and_their_answers() -> None:
    scene = Scene(0, DARK, (STAR,), STOP)
    asked = [
        (question.parameters["question"], question.truth)
        for question in questions(scene)
        if question.task == "visual_question_answering"
    ]
    assert ("what color is the star?", TextTruth("orange")) in asked
    assert ("is there an orange star?", TextTruth("yes")) in asked
    assert ("how many shapes are there?", TextTruth("1")) in asked
    assert ("what does the text say?", TextTruth("STOP")) in asked
    assert [truth for question, truth in asked if str(question).startswith("is there")][
        1
    ] == TextTruth("no")


def test_no_colour_question_about_a_shape_that_occurs_twice() -> None:
    shape: Shape = "circle"
    other = SceneObject("green", shape, "small", (38, 165, 60), (90.0, 90.0), 12.0)
    asked = {question.name for question in questions(Scene(0, DARK, (CIRCLE, other), None))}
    assert "visual_question_answering color" not in asked


def test_absent_labels_are_absent_and_several_labels_have_all_their_boxes() -> None:
    for seed in range(100):
        scene = sample_scene(seed)
        names = [drawn.name for drawn in scene.objects]
        absent = named(scene, "open_vocabulary_detection absent")
        assert absent.truth == DetectionsTruth(())
        assert absent.parameters["labels"] not in [[name] for name in names]
        several = named(scene, "open_vocabulary_detection several").truth
        assert isinstance(several, DetectionsTruth)
        assert sorted(box.label for box in several.boxes) == sorted(names)


def test_shape_label_expects_every_object_of_the_shape() -> None:
    for seed in range(100):
        scene = sample_scene(seed)
        question = named(scene, "open_vocabulary_detection shape")
        wanted = [
            box_xyxy(drawn)
            for drawn in scene.objects
            if [drawn.shape] == question.parameters["labels"]
        ]
        assert isinstance(question.truth, DetectionsTruth)
        assert wanted
        assert [box.box_xyxy for box in question.truth.boxes] == wanted


def test_questions_of_a_scene_are_always_the_same_and_cover_every_task() -> None:
    scene = sample_scene(3)
    assert questions(scene) == questions(scene)
    assert len({question.task for question in questions(scene)}) == 11


def test_scaling_stretches_truth_and_region_to_the_image() -> None:
    scene = Scene(0, DARK, (SQUARE,), STOP)
    region = named(scene, "instance_segmentation region").scaled((384, 96))
    assert region.parameters["region"] == [132.0, 8.0, 228.0, 32.0]
    assert region.truth == InstancesTruth(
        (((132.0, 8.0), (228.0, 8.0), (228.0, 32.0), (132.0, 32.0)),)
    )
    found = named(scene, "object_detection").scaled((384, 96)).truth
    assert found == DetectionsTruth((LabelledBox("square", (132.0, 8.0, 228.0, 32.0)),))
    word = named(scene, "ocr_with_regions").scaled((384, 96)).truth
    assert isinstance(word, TextRegionsTruth)
    assert word.text_regions[0].quad_xy[2] == (180.0, 84.0)
    caption = named(scene, "captioning short")
    assert caption.scaled((384, 96)) == caption


def test_phrases_are_one_or_more_of_the_objects() -> None:
    counts = set()
    for seed in range(40):
        scene = sample_scene(seed, 3)
        question = named(scene, "phrase_grounding phrases")
        assert isinstance(question.truth, DetectionsTruth)
        labels = [box.label for box in question.truth.boxes]
        assert question.parameters["phrases"] == labels
        assert set(labels) <= set(object_phrases(scene))
        counts.add(len(set(labels)))
    assert counts == {1, 2, 3}

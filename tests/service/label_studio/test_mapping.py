"""Answers as results of Label Studio: units, labels, ids and scores, over an image of 200 x 100
pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.inference.prediction import Answer
from service.label_studio.mapping import (
    Ask,
    Control,
    RegionTags,
    brush_rle,
    image_asks,
    parse_config,
    prediction,
)
from tasks.results import (
    BoxXyxy,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    Ring,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tasks.run_length import encode_mask
from tests.support.fake_service import typed_answer

IMAGE = '<Image name="image" value="$image"/>'


def view(*tags: str) -> str:
    return f"<View>{IMAGE}{''.join(tags)}</View>"


def labelled(tag: str, *labels: str, name: str = "box", attributes: str = "") -> str:
    child = "Choice" if tag == "Choices" else "Label"
    children = "".join(f'<{child} value="{label}"/>' for label in labels)
    return f'<{tag} name="{name}" toName="image" {attributes}>{children}</{tag}>'


def only_control(*tags: str) -> Control:
    (control,) = parse_config(view(*tags))
    return control


def brush_pixels(rle: Sequence[int], shape_hw: tuple[int, int]) -> NDArray[Any]:
    """Return the RGBA pixels of run lengths, decoded bit by bit as rle-pack's `decode` does."""
    bits = "".join(map(str, np.unpackbits(np.array(rle, dtype=np.uint8))))
    at = 0

    def read(width: int) -> int:
        nonlocal at
        at += width
        return int(bits[at - width : at], 2)

    num = read(32)
    word_bits = read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < num:
        is_repeated = read(1)
        length = 1 + read(widths[read(2)])
        if is_repeated:
            out += [read(word_bits)] * length
        else:
            out += [read(word_bits) for _ in range(length)]
    return np.array(out, dtype=np.uint8).reshape(*shape_hw, 4)


BOX: BoxXyxy = (20, 10, 120, 60)
PERCENT = {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0}
SQUARE: Ring = ((20, 10), (120, 10), (120, 60), (20, 60))
HOLE: Ring = ((40, 20), (60, 20), (60, 40), (40, 40))
ISLAND: Ring = ((45, 25), (55, 25), (55, 35), (45, 35))
LABELS = '<Label value="Car" alias="c" predicted_values="red car,blue car"/><Label value="dog"/>'
RECTANGLES = only_control(f'<RectangleLabels name="box" toName="image">{LABELS}</RectangleLabels>')
POLYGONS = only_control(labelled("PolygonLabels", "dog"))
BRUSH = only_control(labelled("BrushLabels", "dog"))
TEXT = only_control('<TextArea name="text" toName="image"/>')
RECTANGLE = only_control('<Rectangle name="shape" toName="image"/>')
POLYGON = only_control('<Polygon name="shape" toName="image"/>')
GROUP = only_control(labelled("Labels", "Text", "Other", name="label"))


ASKED = 'model_question="what?"'
CHOICES = only_control(labelled("Choices", "dog", "cat", attributes=ASKED))


def detections(*objects: tuple[str, float], box: BoxXyxy = BOX) -> Answer:
    items = tuple(Detection(box, label, score) for label, score in objects)
    return typed_answer(DetectionsResult(items, is_parsed=True))


def outlines(*rings: Ring) -> Answer:
    return typed_answer(InstancesResult((Instance(BOX, "dog", 0.5, rings, None),), is_parsed=True))


def located(text: str = "HI") -> Answer:
    return typed_answer(
        TextRegionsResult(
            (TextRegion(((20, 10), (120, 10), (120, 60), (20, 60)), text, 0.5),), True
        )
    )


def results_of(
    answer: Answer,
    control: Control = TEXT,
    label: str | None = None,
    tags: RegionTags | None = None,
) -> list[dict[str, Any]]:
    return list(Ask(control, {}, label, tags).results(answer))


def values(results: Iterable[dict[str, Any]]) -> list[Any]:
    return [result["value"] for result in results]


def test_region_names_its_tags() -> None:
    (region,) = results_of(detections(("dog", 0.25)), RECTANGLES)
    assert len(region.pop("id")) == 10
    assert region == {
        "from_name": "box",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": {**PERCENT, "rectanglelabels": ["dog"]},
        "score": 0.25,
    }


@pytest.mark.parametrize(
    ("box", "percent"),
    [
        (BOX, (10, 10, 50, 50)),
        ((0, 0, 200, 100), (0, 0, 100, 100)),
        ((-20, -1, 220, 101), (0, 0, 100, 100)),
        ((190, 90, 400, 400), (95, 90, 5, 10)),
    ],
)
def test_box_is_in_percent(box: BoxXyxy, percent: tuple[float, ...]) -> None:
    (value,) = values(results_of(detections(("", 1), box=box), RECTANGLE))
    assert value == dict(zip(PERCENT, (*percent, 0), strict=True))


@pytest.mark.parametrize(
    ("objects", "label", "expected"),
    [
        ("red car", None, ["c"]),
        ("BLUE Car", None, ["c"]),
        ("dog", None, ["dog"]),
        ("Car", None, None),  # its phrases stand for it
        ("cat", None, None),
        ("", None, None),
        ("cat", "dog", ["dog"]),
        ("red car", "dog", ["dog"]),
    ],
)
def test_label_of_a_detection(objects: str, label: str | None, expected: list[str] | None) -> None:
    results = values(results_of(detections((objects, 0.5)), RECTANGLES, label))
    labels = [result["rectanglelabels"] for result in results]
    assert labels == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("rings", "expected"),
    [
        ((), []),
        ((SQUARE,), [[[10, 10], [60, 10], [60, 60], [10, 60]]]),
        ((SQUARE, HOLE), [[[10, 10], [60, 10], [60, 60], [10, 60]]]),
        (
            (SQUARE, HOLE, ISLAND),
            [
                [[10, 10], [60, 10], [60, 60], [10, 60]],
                [[22.5, 25], [27.5, 25], [27.5, 35], [22.5, 35]],
            ],
        ),
        ((SQUARE[:2],), []),
        # a corner within 1 px goes
        ((((0, 0), (50, 0.9), (100, 0), (100, 50)),), [[[0, 0], [50, 0], [50, 50]]]),
        ((((0, 0), (50, 1.5), (100, 0), (100, 50)),), [[[0, 0], [25, 1.5], [50, 0], [50, 50]]]),
    ],
)
def test_mask_becomes_polygons(rings: tuple[Ring, ...], expected: list[list[list[float]]]) -> None:
    results = values(results_of(outlines(*rings), POLYGONS, "dog"))
    assert results == [
        {"points": points, "closed": True, "polygonlabels": ["dog"]} for points in expected
    ]


def test_mask_becomes_a_brush() -> None:
    mask = np.zeros((100, 200), dtype=bool)
    mask[10:60, 20:120] = True
    instances = (
        Instance(BOX, "dog", 0.5, None, encode_mask(mask)),
        Instance(BOX, "dog", 0.5, None, None),
    )
    (value,) = values(results_of(typed_answer(InstancesResult(instances, True)), BRUSH, "x"))
    assert (value["format"], value["brushlabels"]) == ("rle", ["x"])
    assert (brush_pixels(value["rle"], (100, 200))[..., 3] == mask * 255).all()


@pytest.mark.parametrize(
    ("shape", "label", "types", "labels"),
    [
        (RECTANGLE, None, ["rectangle", "textarea"], []),
        (POLYGON, None, ["polygon", "textarea"], []),
        (RECTANGLE, GROUP, ["rectangle", "labels", "textarea"], [{"labels": ["Text"]}]),
        (RECTANGLES, RECTANGLES, ["rectanglelabels", "textarea"], [{"rectanglelabels": ["c"]}]),
    ],
)
def test_located_text_has_one_id(
    shape: Control, label: Control | None, types: list[str], labels: list[dict[str, Any]]
) -> None:
    results = list(results_of(located(), tags=RegionTags(shape, TEXT, label)))
    assert [result["type"] for result in results] == types
    assert len({result["id"] for result in results}) == 1
    assert [result["score"] for result in results] == [0.5] * len(results)
    points = {"points": [[10, 10], [60, 10], [60, 60], [10, 60]], "closed": True}
    outline = points if shape is POLYGON else PERCENT
    assert all(outline.items() <= result["value"].items() for result in results)
    assert results[-1]["value"]["text"] == ["HI"]
    assert not any("text" in result["value"] for result in results[:-1])
    objects = []
    for result in results:
        value = result["value"]
        objects.append({name: value[name] for name in value if "labels" in name})
    assert [result for result in objects if result] == labels


def test_described_regions_are_texts() -> None:
    tags = RegionTags(RECTANGLE, TEXT, None)
    shape, text, *others = results_of(detections(("a dog", 0.5), ("b", 0.5)), tags=tags)
    assert shape["value"] == PERCENT
    assert text["value"] == {**PERCENT, "text": ["a dog"]}
    assert shape["id"] == text["id"]
    assert {result["id"] for result in others}.isdisjoint({text["id"]})
    flat = TextRegion(((20, 10), (120, 10), (120, 10), (20, 10)), "HI", 0.5)
    answer = typed_answer(TextRegionsResult((flat,), True))
    (value, _) = values(results_of(answer, tags=RegionTags(RECTANGLE, TEXT, None)))
    assert value == {**PERCENT, "height": 0}


@pytest.mark.parametrize(
    ("control", "text", "expected"),
    [
        (TEXT, " a dog ", [{"text": [" a dog "]}]),
        (TEXT, " \n", []),
        (CHOICES, "Dog", [{"choices": ["dog"]}]),
        (CHOICES, " dog. ", [{"choices": ["dog"]}]),
        (CHOICES, "a dog", []),
        (CHOICES, ".", []),
    ],
)
def test_text_of_a_tag(control: Control, text: str, expected: list[Any]) -> None:
    results = results_of(typed_answer(TextResult(text, True)), control)
    assert values(results) == expected
    assert all("score" not in result for result in results)


@pytest.mark.parametrize(
    ("results", "score"), [([], None), ([{}], None), ([{"score": 0.25}, {}, {"score": 0.75}], 0.5)]
)
def test_score_of_a_prediction(results: list[dict[str, Any]], score: float | None) -> None:
    assert prediction("a@b", iter(results)) == {
        "model_version": "a@b",
        "result": results,
        "score": score,
    }


def test_long_runs_are_split() -> None:
    for value in (False, True):
        mask = np.full((300, 200), value)
        assert (brush_pixels(brush_rle(encode_mask(mask)), (300, 200)) == value * 255).all()


DETECTION: dict[str, object] = {"task": "open_vocabulary_detection"}
SEGMENTATION: dict[str, object] = {"task": "instance_segmentation", "mask_format": "polygon"}
QUESTION = {"task": "visual_question_answering", "question": "what?"}
PER_REGION = '<TextArea name="text" toName="image" perRegion="true"/>'
SHAPES = '<Polygon name="p" toName="image"/><Rectangle name="r" toName="image"/>'


def fields_of(*tags: str) -> list[Mapping[str, object]]:
    return [ask.fields for ask in image_asks(parse_config(view(*tags)))]


@pytest.mark.parametrize(
    ("tags", "fields"),
    [
        (
            labelled("RectangleLabels", *map(str, range(33))),
            [DETECTION | {"labels": list(map(str, range(32)))}, DETECTION | {"labels": ["32"]}],
        ),
        (labelled("RectangleLabels", "dog", "Dog"), [DETECTION | {"labels": ["Dog"]}]),
        (
            labelled("PolygonLabels", "dog", "cat", attributes='model_score_threshold="0.5"'),
            [SEGMENTATION | {"min_score": 0.5, "phrase": phrase} for phrase in ("dog", "cat")],
        ),
        (labelled("BrushLabels", "dog", attributes='smartOnly="true"'), []),
        (SHAPES, [{"task": "region_proposal"}]),
        (SHAPES + PER_REGION.replace("/>", f" {ASKED}/>"), [{"task": "ocr_with_regions"}]),
        ('<TextArea name="t" toName="image" model_task="visual_question_answering"/>', []),
        (SHAPES + labelled("Choices", "dog"), [{"task": "region_proposal"}]),
        (labelled("Choices", "dog", attributes=f'{ASKED} perRegion="true"'), []),
        (labelled("Choices", "dog", attributes=ASKED), [QUESTION]),
        (
            '<TextArea name="t" toName="image" model_question="what?" model_language="de"/>',
            [QUESTION | {"language": "de"}],
        ),
        (
            '<TextArea name="t" toName="image" model_detail="short" model_task="captioning"/>',
            [{"task": "captioning", "detail": "short"}],
        ),
    ],
)
def test_tags_become_tasks(tags: str, fields: list[Mapping[str, object]]) -> None:
    assert fields_of(tags) == fields


def test_text_fills_the_first_shape_of_its_image() -> None:
    other = '<Image name="other" value="$b"/><Rectangle name="of other" toName="other"/>'
    (other_ask, ask) = image_asks(parse_config(view(other, SHAPES, PER_REGION)))[::-1]
    assert other_ask.control.image == "other"
    assert ask.region_tags is not None
    assert ask.region_tags.shape.name == "r"


def test_label_of_the_nearest_control() -> None:
    inner = labelled("Choices", "x", name="inner", attributes=ASKED)
    children = f'<Label value="a"/><Choice value="no label"/>{inner}<View><Label value="b"/></View>'
    text = f'<RectangleLabels name="box" toName="image">{children}</RectangleLabels>'
    brush = f"<View>{labelled('BrushLabels', 'a', name='brush')}</View>"
    skipped = (
        '<Text name="text" value="$text"/><TextArea name="of text" toName="text"/>'
        '<Rating name="rating" toName="image"/>'
    )
    labels = {}
    for control in parse_config(view(brush, skipped, text)):
        labels[control.name] = list(control.labels)
    assert list(labels.items()) == [("brush", ["a"]), ("box", ["a", "b"]), ("inner", ["x"])]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("<View>", "is not XML"),
        (" " * 500_001, "is too long; the maximum is 500000 characters and 10000"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "declares a document type"),
        (view(labelled("KeyPointLabels", "a")), "has none of the tags RectangleLabels, Poly"),
        (view('<TextArea name="prompt" toName="image"/>'), "has none of the tags Rectangle"),
        (view(labelled("Choices", "a")), "has none of the tags Rectangle"),
        (view(labelled("RectangleLabels")), "gives RectangleLabels no labels"),
        (view("<a/>" * 9_998), "is too long"),
        (view(labelled("BrushLabels", "," * 9_995)), "is too long"),
        (view(labelled("BrushLabels", "x" * 201)), "has a name or value of 201 characters, 'xxx"),
        (IMAGE.replace("image", "x" * 201), "has a name or value of 201 characters, 'xxx"),
        (view(*(labelled("BrushLabels", "a"),) * 51), "has 51 control tags; the maximum is 50"),
        (
            f"<View>{IMAGE.replace('$image', 'image')}{labelled('BrushLabels', 'a')}</View>",
            "has none of the tags",
        ),
    ],
)
def test_unusable_configuration(config: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_config(config)
    assert f"the labelling configuration {reason}" in caught.value.message
    assert caught.value.param == "label_config"
    assert len(parse_config(view(*(labelled("BrushLabels", "a"),) * 50))) == 50

import pytest

from service.errors import InvalidRequest
from service.label_studio.mapping import Label, parse_config
from tests.support.label_studio_config import IMAGE, labelled, only_control, view


def test_labels_have_their_alias_and_phrases() -> None:
    control = only_control(
        '<RectangleLabels name="box" toName="image"><Label value="Car" alias="c"'
        ' predicted_values="Red car, blue car"/><Label value="dog, big"/></RectangleLabels>'
    )
    assert control.labels == (Label("c", ("Red car", "blue car")), Label("dog, big", ("dog, big",)))
    assert (control.result_type, control.image, control.image_key) == (
        "rectanglelabels",
        "image",
        "image",
    )
    assert control.label_of("BLUE CAR") == control.label_of("red car") == "c"
    assert control.label_of("green car") is None


def test_nested_controls_are_in_order() -> None:
    text = view(
        f"<View>{labelled('BrushLabels', 'a', name='brush')}</View>",
        labelled("Choices", "x", name="choice"),
    )
    assert [control.name for control in parse_config(text)] == ["brush", "choice"]


def test_label_of_the_nearest_control() -> None:
    inner = labelled("Choices", "x", name="inner")
    children = f'<Label value="a"/><Choice value="no label"/>{inner}<View><Label value="b"/></View>'
    text = f'<RectangleLabels name="box" toName="image">{children}</RectangleLabels>'
    labels = {}
    for control in parse_config(view(text)):
        labels[control.name] = [label.value for label in control.labels]
    assert labels == {"box": ["a", "b"], "inner": ["x"]}


def test_other_controls_are_skipped() -> None:
    text = view(
        '<Text name="text" value="$text"/><TextArea name="of text" toName="text"/>',
        '<Rating name="rating" toName="image"/>',
        labelled("RectangleLabels", "a"),
    )
    assert [control.name for control in parse_config(text)] == ["box"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "is not XML"),
        ("<View>", "is not XML"),
        (" " * 500_001, "is too long; the maximum is 500000 characters and 10000"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "declares a document type"),
        (view(labelled("KeyPointLabels", "a")), "has none of the tags RectangleLabels, Poly"),
        (view('<TextArea name="prompt" toName="image"/>'), "has none of the tags Rectangle"),
        (view(labelled("RectangleLabels")), "gives RectangleLabels no labels"),
        (view(labelled("Choices")), "gives Choices no labels"),
        (view("<a/>" * 9_998), "is too long"),
        (view(labelled("BrushLabels", "x" * 201)), "has a name or value of 201 characters, 'xxx"),
        (
            view(labelled("BrushLabels", "a", name="x" * 201)),
            "has a name or value of 201 characters, 'xxx",
        ),
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


def test_most_controls_are_accepted() -> None:
    assert len(parse_config(view(*(labelled("BrushLabels", "a"),) * 50))) == 50

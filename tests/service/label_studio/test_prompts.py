from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PNG,
    data_url,
    make_core,
)
from tests.support.label_studio_calls import CAPTION, RED_CIRCLE, VERSIONS, post, results, values
from tests.support.label_studio_config import labelled, view
from tests.support.rest_client import client, error_of

PROMPT = '<TextArea name="prompt" toName="image"/>'


def test_text_prompt_is_detected_under_the_label_it_names() -> None:
    config = view(PROMPT, labelled("RectangleLabels", "any", "red circle"))
    prompt = {"result": [{"type": "textarea", "value": {"text": ["red circle"]}}]}
    (prediction,) = results(config, context=prompt)
    assert prediction["model_version"] == VERSIONS[0]
    assert [each["value"]["rectanglelabels"] for each in prediction["result"]] == [["red circle"]]


def test_text_prompt_is_the_question_of_a_text_that_is_an_answer() -> None:
    config = view(
        PROMPT,
        CAPTION,
        '<TextArea name="answer" toName="image" model_task="visual_question_answering"/>',
    )
    (prediction,) = results(
        config, context={"result": [{"type": "textarea", "value": {"text": ["what is it?"]}}]}
    )
    assert values(prediction["result"]) == [("answer", "textarea", {"text": ["a circle"]})]


def test_drawn_box_is_described_in_pixels() -> None:
    box = {"x": 10.02, "y": 10.02, "width": 80, "height": 80, "rectanglelabels": ["red circle"]}
    prompt = {"result": [{"type": "rectanglelabels", "value": box}]}
    texts = {
        **FLORENCE_ANSWERS,
        "What does the region <loc_100><loc_100><loc_900><loc_900> describe?": "it",
    }
    api = client(make_core(decoders={FLORENCE_ID: FakeDecoder(texts)}))
    (prediction,) = results(
        view(labelled("RectangleLabels", "red circle"), CAPTION), api=api, context=prompt
    )
    assert values(prediction["result"]) == [("caption", "textarea", {"text": ["it"]})]


def test_prompt_without_regions_has_an_empty_answer() -> None:
    assert results(RED_CIRCLE, context={"result": []}) == [
        {"model_version": VERSIONS[0], "result": [], "score": None}
    ]


def test_point_is_no_prompt_of_these_models() -> None:
    context = {"result": [{"type": "keypointlabels", "value": {"x": 1, "y": 2, "width": 0}}]}
    body = {
        "tasks": [{"data": {"image": data_url(PNG)}}],
        "label_config": RED_CIRCLE,
        "params": {"context": context},
    }
    assert "models take no points" in error_of(post("predict", body))["message"]


def test_labels_of_a_drawn_box_that_are_no_strings_are_skipped() -> None:
    box = {"x": 10.02, "y": 20.02, "width": 30, "height": 40, "polygonlabels": [{}, [], 5, "b"]}
    region = "What is the polygon mask of region <loc_100><loc_200><loc_400><loc_600>"
    api = client(
        make_core(
            decoders={
                FLORENCE_ID: FakeDecoder({region: "<loc_1><loc_1><loc_9><loc_1><loc_9><loc_9>"})
            }
        )
    )
    context = {"result": [{"type": "rectanglelabels", "value": box}]}
    (prediction,) = results(view(labelled("PolygonLabels", "a", "b")), api=api, context=context)
    assert [each["value"]["polygonlabels"] for each in prediction["result"]] == [["b"]]

"""The requests that a task makes of a dataset's labels."""

from pathlib import Path

import pytest

from diptych_client import Detection, TaskParameters
from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    TrueObject,
    TruePhrase,
    TrueQuestion,
)
from diptych_client.evaluation.questions import (
    ObjectsTruth,
    PhrasesTruth,
    Prompts,
    Questionnaire,
    Sample,
    TextsTruth,
)
from diptych_client.inputs import Folder, ImageFile
from diptych_client.long_runs import RunError

IMAGE = ImageFile("a.png", 1, 1)
CAR = TrueObject("car", (0.0, 0.0, 5.0, 5.0))
NO_PARAMETERS = TaskParameters()


def samples(asked: Questionnaire, labelled: LabelledImage) -> list[Sample]:
    return list(asked.samples(Dataset([labelled], Folder(Path()))))


def questionnaire(
    task: str,
    classes: tuple[str, ...] = (),
    given: TaskParameters = NO_PARAMETERS,
    **prompts: tuple[str, ...],
) -> Questionnaire:
    return Questionnaire(task, given, Prompts(prompts), classes)


def test_all_classes_are_asked_in_requests_of_32_labels() -> None:
    classes = ("car", *(f"class {index}" for index in range(39)))
    (sample,) = samples(
        questionnaire("open_vocabulary_detection", classes), LabelledImage(IMAGE, (CAR,))
    )
    assert [len(request.labels or ()) for request in sample.requests] == [32, 8]
    assert [label for request in sample.requests for label in request.labels or ()] == list(classes)
    assert sample.truth == ObjectsTruth((CAR,))


def test_a_prompt_replaces_its_label_and_a_synonym_counts_as_it() -> None:
    asked = questionnaire("open_vocabulary_detection", ("auto", "dog"), auto=("car", "Automobile"))
    (sample,) = samples(asked, LabelledImage(IMAGE, ()))
    assert sample.requests[0].labels == ("car", "dog")
    labels = [
        asked.names.label(Detection(CAR.box_xyxy, name, 1.0))
        for name in ("car", "automobile", "auto", "cat")
    ]
    assert labels == ["auto", "auto", "auto", "cat"]


def test_given_labels_restrict_the_classes_that_count() -> None:
    asked = questionnaire(
        "open_vocabulary_detection", ("car", "dog"), TaskParameters(labels=["dog"])
    )
    (sample,) = samples(asked, LabelledImage(IMAGE, (CAR,)))
    assert sample.requests[0].labels == ("dog",)
    assert sample.truth == ObjectsTruth(())


def test_each_class_is_segmented_by_its_own_request() -> None:
    (sample,) = samples(
        questionnaire("instance_segmentation", ("car", "dog")), LabelledImage(IMAGE, (CAR,))
    )
    assert [request.phrase for request in sample.requests] == ["car", "dog"]


def test_a_region_proposal_has_one_class() -> None:
    asked = questionnaire("region_proposal", ("car", "dog"))
    (sample,) = samples(asked, LabelledImage(IMAGE, (CAR,)))
    assert isinstance(sample.truth, ObjectsTruth)
    assert [each.label for each in sample.truth.objects] == list(asked.classes) == ["object"]


def test_each_question_is_a_sample() -> None:
    labelled = LabelledImage(
        IMAGE, questions=(TrueQuestion("how many?", ("2",)), TrueQuestion("where?", ()))
    )
    first, second = samples(questionnaire("visual_question_answering"), labelled)
    assert (first.requests[0].question, first.truth) == ("how many?", TextsTruth(("2",)))
    assert (second.requests[0].question, second.truth) == ("where?", None)


def test_phrases_are_asked_together_for_boxes_and_one_by_one_for_masks() -> None:
    phrases = (TruePhrase("left dog", (0, 0, 1, 1)), TruePhrase("car", (2, 2, 3, 3)))
    labelled = LabelledImage(IMAGE, phrases=phrases)
    (boxes,) = samples(questionnaire("phrase_grounding"), labelled)
    (masks,) = samples(questionnaire("instance_segmentation"), labelled)
    assert [request.phrases for request in boxes.requests] == [("left dog", "car")]
    assert [request.phrase for request in masks.requests] == ["left dog", "car"]
    assert boxes.truth == masks.truth == PhrasesTruth(phrases)


def test_an_image_without_labels_is_asked_with_the_given_parameters() -> None:
    given = TaskParameters(labels=["a", "b"])
    (sample,) = samples(questionnaire("open_vocabulary_detection", (), given), LabelledImage(IMAGE))
    assert sample.requests == (TaskParameters(labels=("a", "b")),)
    assert sample.truth is None


def test_a_file_of_prompts_is_read(tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text('car: "car, automobile"\n1: one\n')
    assert Prompts.read(tmp_path / "prompts.yaml").of_label == {
        "car": ("car", "automobile"),
        "1": ("one",),
    }
    (tmp_path / "prompts.yaml").write_text('car: ","\n')
    with pytest.raises(RunError, match="no prompt for car"):
        Prompts.read(tmp_path / "prompts.yaml")

"""The requests that a task makes of a dataset's labels; answers in a log."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diptych_client import (
    AnswerOptions,
    AsyncClient,
    Detection,
    DetectionsResult,
    TaskParameters,
    TextRegionsResult,
    TextResult,
)
from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    TrueObject,
    TruePhrase,
    TrueQuestion,
)
from diptych_client.datasets.inputs import Folder, ImageFile
from diptych_client.datasets.long_runs import FailureLog, RunError
from diptych_client.results import Result
from diptych_client.tools.questions import (
    AnswerLog,
    Collector,
    ObjectsTruth,
    PhrasesTruth,
    Prediction,
    Questionnaire,
    Sample,
    TextsTruth,
    forms_of,
    of_task,
    read_prompts,
)
from tests.support.client_answers import INSTANCES, TEXT_REGIONS, answer
from tests.support.evaluations import detection
from tests.support.scripted_services import scripted

IMAGE = ImageFile("a.png", 1, 1)
BOX = (0.0, 0.0, 5.0, 5.0)
CAR = TrueObject("car", BOX)
NONE = TaskParameters()
OPTIONS = AnswerOptions()
LABELLED = LabelledImage(IMAGE, (CAR,))
QUESTIONS = (TrueQuestion("how many?", ("2",)), TrueQuestion("where?", ()))
PHRASES = (TruePhrase("left dog", BOX), TruePhrase("car", (2, 2, 3, 3)))


def samples_of(
    task: str,
    classes: tuple[str, ...] = (),
    labelled: LabelledImage = LABELLED,
    parameters: TaskParameters = NONE,
    **prompts: tuple[str, ...],
) -> list[Sample]:
    questionnaire = Questionnaire(task, parameters, prompts, classes)
    return list(questionnaire.samples(Dataset([labelled], Folder(Path()))))


def test_classes_are_in_requests_of_32_labels() -> None:
    classes = ("car", *(f"class {index}" for index in range(39)))
    (sample,) = samples_of("open_vocabulary_detection", classes)
    first, second = (tuple(request.labels or ()) for request in sample.requests)
    assert (len(first), len(second), first + second) == (32, 8, classes)
    assert sample.truth == ObjectsTruth((CAR,))
    dogs = TaskParameters(labels=["dog"])
    (sample,) = samples_of("open_vocabulary_detection", ("car", "dog"), LABELLED, dogs)
    assert sample.requests[0].labels == ("dog",)
    assert sample.truth == ObjectsTruth(())


def test_prompt_replaces_label_and_synonym_counts() -> None:
    prompts = {"auto": ("car", "Automobile")}
    questionnaire = Questionnaire("open_vocabulary_detection", NONE, prompts, ("auto", "dog"))
    (sample,) = questionnaire.samples(Dataset([LabelledImage(IMAGE, ())], Folder(Path())))
    assert sample.requests[0].labels == ("car", "dog")
    answers = [Detection(BOX, name, 1.0) for name in ("car", "automobile", "auto", "cat")]
    assert list(map(questionnaire.names.label, answers)) == ["auto", "auto", "auto", "cat"]


def test_each_question_is_a_sample() -> None:
    labelled = LabelledImage(IMAGE, questions=QUESTIONS)
    first, second = samples_of("visual_question_answering", (), labelled)
    assert (first.requests[0].question, first.truth) == ("how many?", TextsTruth(("2",)))
    assert (second.requests[0].question, second.truth) == ("where?", None)
    assert first.title == "a.png | how many?"


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("captioning", ["caption", "both"]),
        ("visual_question_answering", ["question"]),
        ("ocr", ["text"]),
        ("phrase_grounding", ["phrase"]),
        ("instance_segmentation", ["objects", "both", "phrase"]),
        ("object_detection", ["objects", "both"]),
    ],
)
def test_rows_of_other_tasks_are_left_out(task: str, names: list[str]) -> None:
    images = [
        LabelledImage(ImageFile("objects", 1, 1), ()),
        LabelledImage(ImageFile("caption", 1, 1), captions=("a cat",)),
        LabelledImage(ImageFile("both", 1, 1), (CAR,), captions=("a car",)),
        LabelledImage(ImageFile("text", 1, 1), text=""),
        LabelledImage(ImageFile("question", 1, 1), questions=QUESTIONS),
        LabelledImage(ImageFile("phrase", 1, 1), phrases=PHRASES),
        LabelledImage(ImageFile("nothing", 1, 1)),
    ]
    dataset = Dataset(images, Folder(Path()))
    selection = of_task(dataset, task)
    assert [labelled.image.name for labelled in selection.images] == names
    num_others = len(images) - len(names)
    assert selection.ignored == {f"image without labels of {task}": num_others}
    assert of_task(selection, task) is selection
    unlabelled = replace(dataset, images=images[-1:])
    assert of_task(unlabelled, task) is unlabelled


def test_phrases_are_together_for_boxes_and_alone_for_masks() -> None:
    labelled = LabelledImage(IMAGE, phrases=PHRASES)
    (boxes,) = samples_of("phrase_grounding", (), labelled)
    (masks,) = samples_of("instance_segmentation", (), labelled)
    assert [request.phrases for request in boxes.requests] == [("left dog", "car")]
    assert [request.phrase for request in masks.requests] == ["left dog", "car"]
    assert boxes.truth == masks.truth == PhrasesTruth(PHRASES)
    unknown = LabelledImage(IMAGE, phrases=(TruePhrase("sky", None),))
    assert samples_of("phrase_grounding", (), unknown)[0].truth is None
    (sample,) = samples_of("instance_segmentation", ("car", "dog"), car=("auto",))
    assert [request.phrase for request in sample.requests] == ["auto", "dog"]
    sky = TaskParameters(phrase="sky")
    (sample,) = samples_of("instance_segmentation", ("car",), LABELLED, sky)
    assert (sample.requests, sample.truth) == ((sky,), None)


@pytest.mark.parametrize("task", ["ocr", "ocr_with_regions", "region_description"])
def test_text_is_of_its_region(task: str) -> None:
    region = TaskParameters(region=BOX)
    (sample,) = samples_of(task, (), LabelledImage(IMAGE, text="EXIT", region=BOX))
    assert (sample.requests, sample.truth) == ((region,), TextsTruth(("EXIT",)))
    assert sample.title == "a.png | 0, 0, 5, 5"
    (sample,) = samples_of(task, (), LabelledImage(IMAGE, text="EXIT"), region)
    assert sample.requests == (region,)


def test_other_tasks_have_one_request() -> None:
    labels = TaskParameters(labels=["a", "b"])
    (sample,) = samples_of("open_vocabulary_detection", (), LabelledImage(IMAGE), labels)
    assert sample.requests == (TaskParameters(labels=("a", "b")),)
    assert sample.truth is None
    (caption,) = samples_of("captioning", (), LabelledImage(IMAGE, captions=("two cats",)))
    assert caption.truth == TextsTruth(("two cats",))
    (proposal,) = samples_of("region_proposal", ("car", "dog"))
    assert proposal.truth == ObjectsTruth((replace(CAR, label="object"),))


def test_file_of_prompts_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text('car: "car, automobile"\n1: one\ntv: ["tv, radio"]')
    prompts = {"car": ("car", "automobile"), "1": ("one",), "tv": ("tv, radio",)}
    assert read_prompts(path) == prompts
    for text, message in (('car: ","\n', "no prompt for car"), ("[a]", "expected lines like")):
        path.write_text(text)
        with pytest.raises(RunError, match=message):
            read_prompts(path)


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("car", ("car", "car", "car")),
        ("Traffic_Lights", ("traffic_lights", "traffic lights", "traffic light")),
        ("Berries", ("berries", "berries", "berry")),
        ("boxes", ("boxes", "boxes", "box")),
        ("glasses", ("glasses", "glasses", "glass")),
        ("bus", ("bus", "bus", "bus")),
        ("ties", ("ties", "ties", "tie")),
        ("s", ("s", "s", "s")),
        ("_", ("_", "_", "_")),
    ],
)
def test_forms_are_ordinary_english(name: str, forms: tuple[str, ...]) -> None:
    assert forms_of(name) == forms


def test_classes_stay_distinct_in_each_form() -> None:
    def forms(*classes: str, **prompts: tuple[str, ...]) -> Sequence[object]:
        return Questionnaire("open_vocabulary_detection", NONE, prompts, classes).forms()

    assert forms("Car", "cars") == [{}, {"Car": "car"}]
    assert forms("Car", "Dogs", Car=("dog",)) == [{}, {"Dogs": "dogs"}]
    assert Questionnaire("object_detection", NONE, {}, ("Car",)).forms() == [{}]
    names = Questionnaire("object_detection", NONE, {}, ("Cars", "Red_Cars", "Red_Car")).names
    labels = [names.label(Detection(BOX, label, 1.0)) for label in ("car", "red car", "RED_CAR")]
    assert labels == ["Cars", "Red_Cars", "Red_Car"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(6):
        (tmp_path / f"{index}.png").write_bytes(b"\xff\xd8\xff any bytes of a JPEG")
    return tmp_path


def sample_of(name: str, *requests: TaskParameters) -> Sample:
    return Sample(ImageFile(name, 1, 1), requests or (NONE,), None)


def num_failed(folder: Path, samples: Sequence[Sample], url: str, *models: str) -> int:
    """Send unanswered requests; return the number of failures."""

    async def run(collector: Collector) -> None:
        async with AsyncClient(url, max_retries=0) as client:
            for model in models or ("m",):
                requests = collector.log.unanswered(samples, model)
                await collector.collect(client, requests, lambda: None)

    with (
        AnswerLog.open(folder / "answers.jsonl", "ocr", OPTIONS) as log,
        FailureLog(folder / "failures.jsonl") as failures,
    ):
        asyncio.run(run(Collector(log, failures, Folder(folder), concurrency=2)))
    return failures.num_failures


def num_received(folder: Path, samples: Sequence[Sample], *models: str) -> int:
    with scripted("rest", []) as (url, script):
        num_failed(folder, samples, url, *models)
    return len(script.received)


def test_no_request_is_sent_twice(folder: Path) -> None:
    samples = [sample_of(f"{index}.png") for index in range(6)]
    assert num_received(folder, samples[:4], "m", "n") == 8
    assert num_received(folder, samples, "m", "n") == 4
    assert num_received(folder, samples, "m", "n") == 0
    log = folder / "answers.jsonl"
    log.write_bytes(log.read_bytes()[:-20])  # killed while an answer was written
    assert num_received(folder, samples, "m", "n") == 1
    changed = replace(samples[0], image=ImageFile("0.png", 1, 2))
    detailed = sample_of("0.png", TaskParameters(detail="detailed"))
    assert num_received(folder, [changed, detailed]) == 2


def predicted(folder: Path, sample: Sample, results: Sequence[Result]) -> Prediction | None:
    with AnswerLog.open(folder / "answers.jsonl", "t", OPTIONS) as log:
        requests = log.requests([sample], "m")
        for (image, job), result in zip(requests, results, strict=False):
            log.append(image, job, replace(answer(result), calibrated=True))
        return log.prediction(sample, "m")


def test_answers_to_several_requests_are_joined(tmp_path: Path) -> None:
    results = [DetectionsResult((detection(label, BOX),)) for label in ("car", "dog")]
    both = sample_of("a.png", TaskParameters(labels=("car",)), TaskParameters(labels=("dog",)))
    assert predicted(tmp_path, both, results[:1]) is None
    prediction = predicted(tmp_path, both, results)
    assert prediction is not None
    assert prediction.items == (*results[0].detections, *results[1].detections)
    assert (prediction.text, prediction.is_calibrated) == (None, True)


@pytest.mark.parametrize(
    ("result", "text", "labels"),
    [
        (TextResult("größer\n円"), "größer\n円", []),
        (TextRegionsResult(TEXT_REGIONS.text_regions * 2), "HI\nHI", ["HI", "HI"]),
        (INSTANCES, None, ["dog", "dog"]),  # the phrase
    ],
)
def test_prediction_has_text_and_phrase(
    result: Result, text: str | None, labels: list[str], tmp_path: Path
) -> None:
    sample = sample_of("a.png", TaskParameters(phrase="dog"))
    prediction = predicted(tmp_path, sample, [result])
    assert prediction is not None
    assert prediction.text == text
    assert [item.label for item in prediction.items] == labels

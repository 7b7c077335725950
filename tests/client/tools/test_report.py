"""The report as files, and in Chromium."""

import io
import json
import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from diptych_client import AnswerOptions, DetectionsResult, Instance, InstancesResult, TextResult
from diptych_client.datasets.dataset import Dataset
from diptych_client.datasets.formats.reading import read_dataset
from diptych_client.datasets.inputs import ImageFile
from diptych_client.datasets.long_runs import Outputs
from diptych_client.geometry import ImageSize
from diptych_client.requests import TaskParameters
from diptych_client.results import Result
from diptych_client.tools.evaluator import Evaluation, Evaluator
from diptych_client.tools.questions import AnswerLog, Questionnaire, Sample
from diptych_client.tools.report import (
    Gallery,
    heading,
    json_document,
    tables,
    write_report,
)
from diptych_client.tools.statistics import Details, Interval
from tests.support.browser import CHROMIUM, MISSING, Witness, chromium
from tests.support.client_answers import answer
from tests.support.evaluations import OBJECTS, detection, write_coco, write_images

HOSTILE = "</script><img src=x onerror=alert(1)>"
MODELS = ("first-model", "second-model")


def results(name: str) -> tuple[Result, Result]:
    """Return a right answer, and one that confuses, loses and invents."""
    objects = OBJECTS[name]
    right = DetectionsResult(tuple(detection(label, box, 0.9) for label, box in objects))
    confused = tuple(detection(HOSTILE, box, 0.5) for _, box in objects[:1])
    invented = (detection("dog", (1.0, 1.0, 30.0, 30.0), 0.3),)
    return right, DetectionsResult(confused or invented)


def evaluated(
    out: Path, task: str, dataset: Dataset, answers: Sequence[Sequence[Result]]
) -> Evaluation:
    """Write a report of the answers, one row for each image."""
    questionnaire = Questionnaire(task, TaskParameters(), {}, dataset.classes)
    samples = list(questionnaire.samples(dataset))
    with AnswerLog.open(out / "answers.jsonl", task, AnswerOptions()) as log:
        for index, model in enumerate(MODELS):
            for (image, job), row in zip(log.requests(samples, model), answers, strict=True):
                model_answer = answer(row[index], ImageSize(100, 80))
                log.append(image, job, model_answer)
        evaluator = Evaluator(log, MODELS, questionnaire.names)
        evaluation = evaluator.evaluate(HOSTILE, samples, seed=0, gallery=10)
        gallery = Gallery(dataset.store, evaluator, samples)
        with Outputs(out) as outputs:
            write_report(outputs, evaluation, gallery)
    return evaluation


def labelled(folder: Path, labels: dict[str, Any]) -> Dataset:
    write_images(folder)
    (folder / "x.jsonl").write_text(json.dumps({"image": "a.png"} | labels))
    return read_dataset(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    dataset = read_dataset(write_coco(folder / "data"))
    answers = [results(name) for name in OBJECTS]
    return evaluated(folder / "out", "open_vocabulary_detection", dataset, answers)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, evaluation: Evaluation, folder: Path) -> Iterator[Page]:
    assert evaluation.models == MODELS
    page = browser.new_page()
    page.goto((folder / "out" / "report.html").as_uri())
    yield page
    page.close()


def test_tables_and_json_have_the_same_numbers(evaluation: Evaluation) -> None:
    metrics, *_ = tables(evaluation)
    samples = [Sample(ImageFile(name, 1, 1), (TaskParameters(),), None) for name in OBJECTS]
    document = json_document(evaluation, samples)
    assert metrics.rows[0][:2] == ("mAP", "100.0 [100.0, 100.0]")
    errors = [details.calibration_error for details in evaluation.details.values()]
    assert metrics.rows[-1] == ("calibration error", *(f"{error:.1f}" for error in errors))
    assert [row["sample"] for row in document["gallery"]] == list(OBJECTS)
    assert document["sentences"][2] == (
        "No verdict: second-model found none of the labelled objects."
    )
    clear = json_document(replace(evaluation, doubts=()), samples)
    assert clear["sentences"][2].startswith("first-model is better by 100.0 mAP")
    assert document["measured"]["intervals"]["first-model"]["mAP"]["value"] == pytest.approx(100)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    kinds = {"wrong class": 2, "missed": 1, "extra": 1}
    assert document["details"]["second-model"]["kinds"] == kinds
    assert evaluation.measured is not None
    assert evaluation.measured.intervals["second-model"]["mAP"].value == 0
    details = {"m": Details({"car": {"objects": 1.0, "AP": float("nan"), "AP50": 20.0}})}
    undefined = replace(evaluation, details=details)
    assert tables(undefined)[1].rows == (("car", "1", "–", "20.0"),)
    assert json_document(undefined, samples)["details"]["m"]["by_class"]["car"]["AP"] is None
    difference = replace(evaluation.measured.differences[0], interval=Interval(1, -4, 6))
    unclear = replace(evaluation, measured=replace(evaluation.measured, differences=(difference,)))
    assert tables(unclear)[0].rows[0][-1] == "1.0 [−4.0, 6.0] (not told apart)"
    assert metrics.rows[0][-1] == "−100.0 [−100.0, −100.0]"


def test_heading_counts_samples(evaluation: Evaluation) -> None:
    questions = replace(evaluation, num_samples=5, num_labelled=4, num_unanswered=1)
    counts = "3 images, 5 questions, 4 of them labelled; 1 not answered by every model"
    assert heading(questions) == f"open_vocabulary_detection on {HOSTILE}: {counts}"
    assert heading(replace(evaluation, num_labelled=0)).endswith(": 3 images without labels")


@pytest.mark.usefixtures("evaluation")
def test_page_has_names_as_text(folder: Path) -> None:
    """The dataset and a label are hostile: neither is markup, nor ends a script."""
    page = (folder / "out" / "report.html").read_text()
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img" not in page
    assert "<title>open_vocabulary_detection on &lt;/script&gt;&lt;img src=x" in page
    assert "\\u003c/script\\u003e\\u003cimg src=x" in page  # the cards
    assert "<td>100.0</td>" in page


def cards_of(out: Path) -> list[dict[str, Any]]:
    page = (out / "report.html").read_text()
    match = re.search(r'id="cards">(.*?)</script>', page, re.S)
    assert match is not None
    cards: list[dict[str, Any]] = json.loads(match[1])
    return cards


def test_masks_are_filled_outlines(tmp_path: Path) -> None:
    ring = [10.0, 10.0, 40.0, 10.0, 40.0, 30.0]
    crowd = {"label": "car", "box": [0, 0, 99, 79], "iscrowd": True}
    objects = [{"label": "car", "box": [10, 10, 40, 30], "segmentation": [ring]}, crowd]
    dataset = labelled(tmp_path / "data", {"objects": objects})
    points = ((10.0, 10.0), (40.0, 10.0), (40.0, 30.0))
    mask = InstancesResult((Instance((10, 10, 40, 30), "car", 0.9, (points,)),))
    answers = [(mask, InstancesResult(()))]
    evaluated(tmp_path / "out", "instance_segmentation", dataset, answers)
    (card,) = cards_of(tmp_path / "out")[:1]
    kind, _, data = card["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(b64decode(data))).size == (100, 80)
    assert (card["width"], card["height"], card["error"]) == (100, 80, 0.5)
    truth, first, second = card["panels"]
    outline = {"rings": [[[10, 10], [40, 10], [40, 30]]], "is_filled": True}
    assert truth["shapes"][0] == {"label": "car", "kind": "missed"} | outline
    assert (truth["shapes"][1]["kind"], truth["shapes"][1]["is_filled"]) == ("truth", False)
    assert first["shapes"] == [{"label": "car 0.90", "kind": "right"} | outline]
    assert second["shapes"] == []


def test_answers_to_phrases_have_their_kind(tmp_path: Path) -> None:
    box = OBJECTS["a.png"][0][1]
    phrases = [{"phrase": "left car", "box": box}, {"phrase": "dog", "box": box}]
    dataset = labelled(tmp_path / "data", {"phrases": phrases})
    right = detection("left car", box, 0.9)
    beside = detection("dog", (60.0, 60.0, 70.0, 70.0), 0.9)
    answers = (DetectionsResult((right, beside)), DetectionsResult((right,)))
    evaluated(tmp_path / "out", "phrase_grounding", dataset, [answers])
    kinds = []
    for panel in cards_of(tmp_path / "out")[0]["panels"]:
        kinds.append([shape["kind"] for shape in panel["shapes"]])
    assert kinds == [["truth", "missed"], ["right", "badly placed"], ["right"]]


@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (768, "dark"), (390, "light")])
@pytest.mark.usefixtures("evaluation")
def test_page_is_whole_at_every_width(
    browser: Browser, folder: Path, width: int, theme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
    witness = Witness()
    witness.watch(page)
    page.goto((folder / "out" / "report.html").as_uri())
    expect(page.locator(".card")).to_have_count(3)
    assert witness.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    clipped = "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.locator(".wide").evaluate_all(clipped) == 0
    violations = Axe().run(page).response["violations"]
    assert not [rule for rule in violations if rule["impact"] in ("serious", "critical")]
    page.close()


def test_cards_are_filtered_and_sorted(page: Page) -> None:
    titles = page.locator(".card h3")
    names = ["a.png", "b.png", "c.png"]
    assert [text.split()[0] for text in titles.all_text_contents()] == names
    page.locator("select[name=sort]").select_option("disagreement")
    texts = titles.all_text_contents()
    numbers = [float(text.split("disagreement ")[1].split()[0]) for text in texts]
    assert numbers == sorted(numbers, reverse=True)
    page.locator("select[name=sort]").select_option("name")
    assert [text.split()[0] for text in titles.all_text_contents()] == names
    page.locator("select[name=kind]").select_option("missed")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.get_by_role("status")).to_have_text("1 of 3 images of the gallery")


def test_plots_are_named_and_drawn(page: Page) -> None:
    labels = "all => all.map(e => e.getAttribute('aria-label'))"
    assert page.locator("svg.plot").evaluate_all(labels) == [
        "Metrics with 95 % intervals",
        "Precision over recall, IoU 0.5",
    ]
    # a perfect model, from (0, 1) to (1, 1)
    path = page.locator("svg.plot").nth(1).locator("path[stroke]").first.get_attribute("d") or ""
    assert path.startswith("M40.0 12.0L")
    assert path.endswith("L348.0 12.0")
    assert page.locator("svg.plot").first.locator("circle").count() == 2 * 4


def test_shapes_lie_on_their_objects(page: Page) -> None:
    panels = page.locator(".card").first.locator(".panel")
    assert panels.locator("figcaption").all_text_contents() == ["truth", *MODELS]
    for panel in range(2):
        shapes = panels.nth(panel).locator(".shape .line")
        paths = [shapes.nth(i).get_attribute("d") for i in range(2)]
        assert paths == ["M10 10L40 10L40 30L10 30Z", "M50 20L90 20L90 60L50 60Z"]
    assert panels.nth(1).locator(".shape.right").count() == 2
    assert panels.nth(2).locator(".shape.wrong-class").count() == 1
    assert panels.nth(0).locator(".shape.missed").count() == 1  # the second model missed it
    assert HOSTILE in (panels.nth(2).locator(".shape text").text_content() or "")


def test_texts_are_below_their_image(browser: Browser, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    differing = (TextResult("one"), TextResult(HOSTILE))
    answers = [(TextResult("same"), TextResult("same")), differing, differing]
    dataset = read_dataset(tmp_path / "images")
    assert evaluated(tmp_path / "out", "captioning", dataset, answers).measured is None
    page = browser.new_page()
    page.goto((tmp_path / "out" / "report.html").as_uri())
    assert page.locator(".card").first.locator("pre").all_text_contents() == ["one", HOSTILE]
    expect(page.locator("select[name=sort]")).to_have_value("disagreement")
    page.close()

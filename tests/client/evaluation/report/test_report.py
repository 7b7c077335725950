"""The report as files, and in Chromium."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, expect

from diptych_client import AnswerOptions, DetectionsResult, TextResult
from diptych_client.evaluation.dataset import Dataset
from diptych_client.evaluation.evaluator import Evaluation, Evaluator
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.evaluation.questions import AnswerLog, Prompts, Questionnaire, Sample
from diptych_client.evaluation.report.gallery import Gallery
from diptych_client.evaluation.report.page import write_report
from diptych_client.evaluation.report.tables import json_document, markdown
from diptych_client.evaluation.statistics import Interval
from diptych_client.geometry import ImageSize
from diptych_client.long_runs import Outputs
from diptych_client.requests import TaskParameters
from diptych_client.results import Result
from tests.support.browser import CHROMIUM, MISSING, Witness, chromium
from tests.support.client_answers import answer
from tests.support.evaluations import OBJECTS, detection, write_coco, write_images

HOSTILE = "</script><img src=x onerror=alert(1)>"
MODELS = ("first-model", "second-model")
ONE_LINE_EACH = "all => all.length && all.every(each => each.getClientRects().length === 1)"
BROKEN_WORDS = """cells => cells.filter(cell => {
  const text = document.createRange();
  text.selectNodeContents(cell);
  return /^\\w+$/.test(cell.textContent) && text.getClientRects().length > 1;
}).map(cell => cell.textContent)"""


def results(name: str) -> tuple[Result, Result]:
    """Return the answers of both models: the first is right, the second confuses, loses and
    invents.
    """
    own = OBJECTS[name]
    right = DetectionsResult(tuple(detection(label, box, 0.9) for label, box in own))
    confused = DetectionsResult(tuple(detection(HOSTILE, box, 0.5) for _, box in own[:1]))
    return right, confused if own else DetectionsResult(
        (detection("dog", (1.0, 1.0, 30.0, 30.0), 0.3),)
    )


def evaluated(
    out: Path, task: str, dataset: Dataset, answers: Sequence[Sequence[Result]]
) -> Evaluation:
    """Write a report of the answers, one row for each image."""
    questionnaire = Questionnaire(task, TaskParameters(), Prompts(), dataset.classes)
    samples: list[Sample] = list(questionnaire.samples(dataset))
    out.mkdir()
    with AnswerLog.open(out / "answers.jsonl", task, AnswerOptions()) as log:
        for index, model in enumerate(MODELS):
            for question, own in zip(log.requests(samples, model), answers, strict=True):
                log.append(question, answer(own[index], ImageSize(100, 80)), 0.1 * (index + 1), 1)
        evaluation = Evaluator(log, MODELS, questionnaire.names).evaluate(
            HOSTILE, samples, seed=0, gallery=10
        )
        gallery = Gallery(dataset.store, log, questionnaire.names, MODELS)
        with Outputs(out) as outputs:
            write_report(outputs, evaluation, gallery, samples)
    return evaluation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    dataset = read_dataset(write_coco(folder / "data"))
    return evaluated(
        folder / "out", "open_vocabulary_detection", dataset, [results(name) for name in OBJECTS]
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with chromium() as started:
        yield started


def test_the_metrics_and_the_difference_are_those_of_the_answers(evaluation: Evaluation) -> None:
    assert evaluation.measured is not None
    first, second = (evaluation.measured.intervals[model] for model in MODELS)
    assert first["mAP"].value == pytest.approx(100)
    assert second["mAP"].value == 0
    assert evaluation.measured.differences[0].first == "first-model"
    assert evaluation.details["second-model"].kinds == {"wrong class": 2, "missed": 1, "extra": 1}
    speeds = [evaluation.speed[model].images_per_s for model in MODELS]
    assert speeds == [pytest.approx(10), pytest.approx(5)]


def test_markdown_and_json_have_the_same_numbers(evaluation: Evaluation) -> None:
    text = markdown(evaluation)
    document = json_document(evaluation, dict.fromkeys(range(3), "x"))
    assert "| mAP | 100.0 [" in text
    assert "| car | 1 | 100.0 | 0.0 | 100.0 | 0.0 |" in text
    assert document["measured"]["intervals"]["first-model"]["mAP"]["value"] == pytest.approx(100)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_difference_whose_interval_holds_zero_is_marked(evaluation: Evaluation) -> None:
    assert evaluation.measured is not None
    assert "(not told apart)" not in markdown(evaluation)
    difference = replace(evaluation.measured.differences[0], interval=Interval(1, -4, 6))
    unclear = replace(evaluation, measured=replace(evaluation.measured, differences=(difference,)))
    assert "| 1.0 [−4.0, 6.0] (not told apart) |" in markdown(unclear)


@pytest.mark.usefixtures("evaluation")
def test_only_matrices_are_coloured_by_the_share_of_their_largest_count(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text()
    matrix = page.partition("Confusion matrix of first-model")[2].partition("</table>")[0]
    assert re.findall(r'<td style="--heat: (\d+)%" class="heat">(\d+)', matrix)[:3] == [
        ("30", "1"),
        ("0", "0"),
        ("0", "0"),
    ]
    assert '<td style="--heat: 60%" class="heat">2</td>' in matrix
    assert "<td>100.0</td>" in page


@pytest.mark.parametrize(
    "name",
    [
        HOSTILE,
        "![x](http://evil/a.png)",
        "[x](http://evil)",
        "a\n# b\n\n```\n<b>",
        "|a|`|",
        "\x1b[2J",
    ],
)
def test_markdown_has_a_name_as_text(evaluation: Evaluation, name: str) -> None:
    renamed = replace(
        evaluation,
        dataset=name,
        models=(name,),
        speed={name: evaluation.speed["first-model"]},
        details={name: evaluation.details["second-model"]},
        measured=None,
        agreed=None,
    )
    text = markdown(renamed)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = list(chain.from_iterable(token.children or () for token in tokens))
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "fence", "code_block"}
    assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1
    shown = " ".join(name.split()).replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert shown in "".join(token.content for token in inline)
    assert "\x1b" not in text


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 768, 390])
@pytest.mark.usefixtures("evaluation")
def test_the_page_is_whole_at_every_width(
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
    assert page.locator("th").evaluate_all(BROKEN_WORDS) == []
    assert page.locator(".interval").evaluate_all(ONE_LINE_EACH)
    found = [
        each["id"]
        for each in Axe().run(page).response["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert found == []
    page.close()


@pytest.mark.usefixtures("evaluation")
def test_cards_are_filtered_and_sorted(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "out" / "report.html").as_uri())
    titles = page.locator(".card h3")
    assert [text.split()[0] for text in titles.all_text_contents()] == ["a.png", "b.png", "c.png"]
    page.locator("select[name=sort]").select_option("disagreement")
    numbers = [
        float(text.split("disagreement ")[1].split()[0]) for text in titles.all_text_contents()
    ]
    assert numbers == sorted(numbers, reverse=True)
    page.locator("select[name=sort]").select_option("name")
    assert [text.split()[0] for text in titles.all_text_contents()] == ["a.png", "b.png", "c.png"]
    page.locator("select[name=kind]").select_option("missed")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.get_by_role("status")).to_have_text("1 of 3 images of the gallery")
    page.locator("select[name=kind]").select_option("")
    page.locator("select[name=class]").select_option("car")
    expect(titles).to_have_count(1)
    page.close()


@pytest.mark.usefixtures("evaluation")
def test_each_plot_is_named_by_its_title(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "out" / "report.html").as_uri())
    titles = page.locator("svg.plot").evaluate_all(
        "all => all.map(e => e.getAttribute('aria-label'))"
    )
    assert titles == [
        "Metrics with 95 % intervals",
        "Precision over recall, IoU 0.5",
        *[f"By class, IoU 0.5: {model}" for model in MODELS],
        "Answers with at least a score, IoU 0.5",
    ]
    page.close()


@pytest.mark.usefixtures("evaluation")
def test_shapes_lie_on_their_objects_and_have_their_kind(browser: Browser, folder: Path) -> None:
    page = browser.new_page()
    page.goto((folder / "out" / "report.html").as_uri())
    panels = page.locator(".card").first.locator(".panel")
    assert panels.locator("figcaption").all_text_contents() == ["truth", *MODELS]
    for panel in range(2):
        shapes = panels.nth(panel).locator(".shape .line")
        paths = [shapes.nth(i).get_attribute("d") for i in range(2)]
        assert paths == ["M10 10L40 10L40 30L10 30Z", "M50 20L90 20L90 60L50 60Z"]
    assert panels.nth(1).locator(".shape.right").count() == 2
    assert panels.nth(2).locator(".shape.wrong-class").count() == 1
    assert HOSTILE in (panels.nth(2).locator(".shape text").text_content() or "")
    page.close()


def test_answers_to_phrases_have_their_kind(browser: Browser, tmp_path: Path) -> None:
    box = OBJECTS["a.png"][0][1]
    write_images(tmp_path / "data")
    row = {
        "image": "a.png",
        "phrases": [{"phrase": "left car", "box": box}, {"phrase": "dog", "box": box}],
    }
    (tmp_path / "data" / "x.jsonl").write_text(json.dumps(row))
    right = detection("left car", box, 0.9)
    answers = (
        DetectionsResult((right, detection("dog", (60.0, 60.0, 70.0, 70.0), 0.9))),
        DetectionsResult((right,)),
    )
    evaluated(tmp_path / "out", "phrase_grounding", read_dataset(tmp_path / "data"), [answers])
    page = browser.new_page()
    page.goto((tmp_path / "out" / "report.html").as_uri())
    kinds = [
        panel.locator(".shape").evaluate_all("all => all.map(e => e.classList[1])")
        for panel in page.locator(".card .panel").all()
    ]
    assert kinds == [["truth", "missed"], ["right", "badly-placed"], ["right"]]
    page.close()


def test_texts_are_shown_below_their_image(browser: Browser, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    answers = [
        (TextResult("same"), TextResult("same")),
        *[(TextResult("one"), TextResult(HOSTILE))] * 2,
    ]
    evaluation = evaluated(
        tmp_path / "out", "captioning", read_dataset(tmp_path / "images"), answers
    )
    assert evaluation.measured is None
    page = browser.new_page()
    page.goto((tmp_path / "out" / "report.html").as_uri())
    assert page.locator(".card").first.locator("pre").all_text_contents() == ["one", HOSTILE]
    expect(page.locator("select[name=sort]")).to_have_value("disagreement")
    page.close()

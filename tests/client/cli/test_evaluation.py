"""`diptych evaluate` over a scripted service: the files of its report, and models it refuses."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from diptych_client import Answer, DetectionsResult
from diptych_client.cli.evaluate import EvaluationRun
from diptych_client.cli.options import (
    ConnectionOptions,
    EvaluateOptions,
    InputOptions,
    TaskOptions,
)
from diptych_client.evaluation.report.page import write_index
from diptych_client.long_runs import RunError
from diptych_client.results import Model
from tests.support.client_answers import DETECTIONS, SIZE, answer
from tests.support.scripted_services import Received, Script, serving_rest

TASK = "object_detection"
NAMES = ("first", "second")


def model(name: str, calibrated_tasks: tuple[str, ...] = ()) -> Model:
    return Model(
        id=name,
        family="florence2",
        organization="o",
        category="c",
        modality="m",
        release_date="2024-06-01",
        context_window=1,
        parameters=1,
        license="MIT",
        tasks=(TASK,),
        features=(),
        resolution=1,
        precision="float32",
        checkpoint="0" * 64,
        calibrated_tasks=calibrated_tasks,
    )


@dataclass(frozen=True, slots=True)
class Command:
    """Arguments of the command."""

    dataset: Path
    options: EvaluateOptions
    task: str = TASK
    tiles: str | None = None

    @property
    def out(self) -> Path:
        assert self.options.out is not None
        return self.options.out


@pytest.fixture
def command(tmp_path: Path) -> Command:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (SIZE.width, SIZE.height)).save(tmp_path / "images" / name)
    return Command(
        tmp_path / "images", EvaluateOptions(out=tmp_path / "out", concurrency=1, gallery=2)
    )


def answers_of_both() -> list[Answer]:
    """Return the answers of one model to both images, then those of the other."""
    return [answer(DETECTIONS, model=name) for name in sorted(NAMES * 2)]


def evaluated(
    command: Command,
    models: Sequence[Model],
    answers: Sequence[Answer] = (),
    script: Script | None = None,
) -> tuple[int, Script]:
    task = {"id": TASK, "description": "", "result": "detections", "parameters": {}}
    listings = {
        "/v1/tasks": [task | {"models": [each.id for each in models]}],
        "/v1/models": [asdict(each) for each in models],
    }
    script = script or Script(list(answers))
    script.listings = listings
    with serving_rest(script) as url:
        connection = ConnectionOptions(url, None, 5.0, 0)
        task_options = TaskOptions(command.task, tiles=command.tiles)
        inputs = [str(command.dataset)]
        run = EvaluationRun(connection, inputs, command.options, InputOptions(), task_options)
        status = run.run()
    return status, script


def test_every_image_is_sent_to_every_model_and_the_report_has_their_answers(
    command: Command,
) -> None:
    answers = answers_of_both()
    models = [model(name) for name in NAMES]
    num_failures, script = evaluated(command, models, answers)
    assert (num_failures, len(script.received)) == (0, 4)
    report = json.loads((command.out / "report.json").read_text())
    assert report["models"] == list(NAMES)
    assert "agreement" in (command.out / "report.md").read_text()
    assert "a.png" in (command.out / "report.html").read_text()
    again, script = evaluated(command, models)
    assert (again, script.received) == (0, [])  # a finished run is not sent again


def test_a_model_in_tiles_is_compared_with_itself_without_them(command: Command) -> None:
    command = replace(command, options=replace(command.options, without_tiles=True))
    with pytest.raises(RunError, match="compares with tiles: give --tiles, such as auto"):
        evaluated(command, [model("first")])
    answers = [answer(DETECTIONS, model="first")] * 4
    _, script = evaluated(replace(command, tiles="auto"), [model("first")], answers)
    asked = [b'name="tiles"' in each.body for each in script.received]
    assert asked == [True, True, False, False]
    report = json.loads((command.out / "report.json").read_text())
    assert report["models"] == ["first", "first without tiles"]


@dataclass(slots=True)
class UnequalScript(Script):
    """Answers as one model that finds the star, and as one that finds nothing."""

    def next_step(self, received: Received) -> Answer:
        self.received.append(received)
        found = DetectionsResult(DETECTIONS.detections[:1])
        is_first = b"first" in received.body
        return answer(found if is_first else DetectionsResult(()), model="first")


def test_a_race_ends_when_one_model_is_known_to_be_better(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [{"label": "star", "box": DETECTIONS.detections[0].box_xyxy}]
    rows = [{"image": "a.png", "objects": objects}]
    for number in range(30):
        name = f"{number}.png"
        (command.dataset / name).write_bytes((command.dataset / "a.png").read_bytes())
        rows.append({"image": name, "objects": objects})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (command.dataset / "labels.jsonl").write_text(lines)
    command = replace(command, options=replace(command.options, until_decided=True))
    models = [model(name) for name in NAMES]
    _, script = evaluated(command, models, script=UnequalScript([]))
    assert len(script.received) < 2 * len(rows)
    said = f"first is better: decided after {len(script.received) // 2} of 31 images"
    assert said in capsys.readouterr().out


def test_a_race_of_one_model_is_refused(command: Command) -> None:
    command = replace(command, options=replace(command.options, until_decided=True))
    with pytest.raises(RunError, match="--until-decided compares two models; given are first"):
        evaluated(command, [model("first")])


def test_the_report_names_its_run_and_the_requests_that_failed(command: Command) -> None:
    (command.dataset / "a.png").write_text("no image")
    answers = [answer(DETECTIONS, model=name) for name in NAMES]
    assert evaluated(command, [model(name) for name in NAMES], answers)[0] == 2
    run = json.loads((command.out / "report.json").read_text())["run"]
    assert run["settings"]["models"] == list(NAMES)
    assert run["settings"]["service"].startswith("http://127.0.0.1:")
    assert [(each["image"], each["model"]) for each in run["failed"]] == [
        ("a.png", name) for name in NAMES
    ]
    page = (command.out / "report.md").read_text()
    assert "| date | 20" in page
    assert "| first | float32, checkpoint 000000000000 |" in page
    assert "| a.png | first | image must be a JPEG, PNG or WebP file" in page


def test_a_report_of_other_options_is_kept(command: Command) -> None:
    answers = answers_of_both()
    models = [model(name) for name in NAMES]
    evaluated(command, models, answers)
    evaluated(command, models)
    assert not list(command.out.glob("report-*"))
    before = (command.out / "report.md").read_bytes()
    evaluated(command, models[:1], answers)
    (kept,) = command.out.glob("report-*.md")
    assert kept.read_bytes() == before
    assert len(list(command.out.glob("report-*"))) == 3


def test_an_index_has_a_row_for_each_report(command: Command, tmp_path: Path) -> None:
    answers = answers_of_both()
    evaluated(command, [model(name) for name in NAMES], answers)
    (row,) = write_index([command.out], tmp_path / "index.html")
    assert (row["task"], row["images"]) == (f"{TASK} on images", 2)
    page = (tmp_path / "index.html").read_text()
    assert 'href="out/report.html"' in page
    assert "agreement" in page
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(RunError, match=r"report\.json does not exist; give a folder that"):
        write_index([tmp_path], tmp_path / "index.html")
    with pytest.raises(RunError, match="is not a report"):
        write_index([tmp_path / "x.json"], tmp_path / "index.html")


def test_one_labelled_model_prints_its_metrics_by_class(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = [{"label": "star", "box": [1, 2, 11, 12]}]
    rows = [{"image": name, "objects": boxes} for name in ("a.png", "b.png")]
    (command.dataset / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answers = [answer(DETECTIONS, model="first")] * 2
    evaluated(command, [model("first")], answers)
    printed = capsys.readouterr().out
    assert "mAP50" in printed
    assert "star" in printed


def test_models_with_calibrated_scores_are_not_calibrated_again(
    command: Command, tmp_path: Path
) -> None:
    options = replace(command.options, calibrate=tmp_path / "calibration.json")
    models = [model("first", (TASK,)), model("second"), model("third", (TASK,))]
    with pytest.raises(RunError, match=f"^first, third answers {TASK} with calibrated scores"):
        evaluated(replace(command, options=options), models)
    assert not command.out.exists()


def test_a_model_that_is_not_served_is_refused_before_a_request(command: Command) -> None:
    options = replace(command.options, models=["none", "first", "other"])
    with pytest.raises(RunError, match=f"none, other does not offer {TASK}; offered by"):
        evaluated(replace(command, options=options), [model(name) for name in NAMES])
    assert not command.out.exists()


def test_a_task_that_is_not_served_is_refused_before_a_request(command: Command) -> None:
    with pytest.raises(RunError, match=f"no model offers task 'ocr'; offered are {TASK}"):
        evaluated(replace(command, task="ocr"), [model(name) for name in NAMES])
    assert not command.out.exists()

"""The bench: its requests, its peers' answers, and its figures."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from laboratory.bench.__main__ import (
    Rounds,
    markdown,
    measures_of,
    num_equal,
    parse,
    ratio_table,
)
from laboratory.bench.load import (
    DECODE_HEAVY,
    FASTAPI,
    LITSERVE,
    MIXED,
    ONE_IMAGE,
    OURS,
    OURS_DEFAULT,
    SHORT_TOKENS,
    WORKLOADS,
    BenchQuestion,
    Round,
    Sample,
    Server,
    drive,
    launch_of,
    requests_of,
)
from laboratory.bench.material import make_scenes, write_catalog
from laboratory.bench.peers import Generator, PromptedImage
from laboratory.processes import running
from tests.support.catalog import FLORENCE, ROOT
from tests.support.http_servers import serving_app
from tests.support.scene_images import scene_png

PROMPTS = ("What does the image describe?", "Describe in detail what is shown in the image.")
LENGTHS = (40, 3)  # the second answer is cut
TASKS = ("captioning", "captioning", "ocr")
SCENES = []
for number in range(120):
    scene = [BenchQuestion(f"{number}.png", {"task": task}, "", 40) for task in TASKS]
    scene[1].fields["detail"] = "detailed"
    SCENES.append(scene)


def test_no_two_rounds_share_a_scene() -> None:
    images = list[str]()
    for run in range(2):
        for workload in WORKLOADS:
            requests = requests_of(workload, SCENES, run)
            images += {request.image for request in requests}
    assert len(images) == len(set(images))


def test_requests_of_each_workload() -> None:
    mixed = requests_of(MIXED, SCENES, 0)
    assert [request.fields["task"] for request in mixed] == ["captioning", "ocr"] * 8
    assert ["detail" in request.fields for request in mixed[:6:2]] == [False, True, False]
    one_image = requests_of(ONE_IMAGE, SCENES, 0)
    assert [request.fields["task"] for request in one_image] == ["captioning", "ocr"]
    lengths = [r.max_new_tokens for r in requests_of(DECODE_HEAVY, SCENES, 0)]
    assert lengths == [8, 32, 8, 64, 8, 128, 8, 256]


def test_scenes_have_single_prompts(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (scene,) = make_scenes(tmp_path, write_catalog(tmp_path), num_scenes=1)
    lengths = {question.fields["task"]: question.max_new_tokens for question in scene}
    assert lengths["captioning"] == 48  # the last of two
    assert lengths["region_description"] == 8
    assert all(Path(question.image).is_file() for question in scene)
    (detection,) = (q for q in scene if q.fields["task"] == "object_detection")
    assert detection.prompt == "Locate the objects with category name in the image."


def answering(forms: list[Any], status: int = 200) -> Starlette:
    """Return a server that adds the fields that it gets to `forms`."""

    async def predict(request: Request) -> JSONResponse:
        async with request.form() as form:
            fields = {name: value for name, value in form.items() if name != "image"}
        forms.append(fields)
        body = {"text": "theirs", "generated_tokens": 4}
        ours = {"raw_text": "ours", "usage": {"generated_tokens": 5}}
        return JSONResponse(body | ours, status)

    paths = ("/predict", "/v1/predict")
    return Starlette(routes=[Route(path, predict, methods=["POST"]) for path in paths])


def test_requests_are_sent_in_each_form(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(scene_png(0))
    fields = {"task": "phrase_grounding", "phrases": ["a star"]}
    question = BenchQuestion(str(tmp_path / "0.png"), fields, "detect a star", 7)
    forms = list[Any]()
    with serving_app(answering(forms)) as served:
        peers = drive(served.url, False, [question] * 3, 2)
        (ours,) = drive(served.url, True, [question], 1).samples
    assert [(sample.text, sample.num_tokens) for sample in peers.samples] == [("theirs", 4)] * 3
    assert (ours.text, ours.num_tokens) == ("ours", 5)
    phrases = {"task": "phrase_grounding", "phrases": '["a star"]', "constrained": "false"}
    prompt = {"prompt": "detect a star", "max_new_tokens": "7"}
    assert forms == [prompt] * 3 + [phrases | {"max_new_tokens": "7"}]


def test_error_ends_a_round(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(scene_png(0))
    question = BenchQuestion(str(tmp_path / "0.png"), {"task": "ocr"}, "", 7)
    with serving_app(answering([], 500)) as served, pytest.raises(aiohttp.ClientResponseError):
        drive(served.url, False, [question], 1)


def test_batch_has_the_answers_of_single_requests() -> None:
    generator = Generator(ROOT / FLORENCE.source, num_threads=1)
    requests = []
    for seed, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        requests.append(PromptedImage.decode(scene_png(seed), prompt, length))
    together = generator.answer(requests)
    assert together == [generator.answer([request])[0] for request in requests]
    assert together[1].generated_tokens == 3
    text_ids = generator._processor.tokenizer.encode(together[0].text, add_special_tokens=False)
    assert together[0].generated_tokens == len(text_ids) + 2  # with start and end
    assert "<" not in together[0].text


@pytest.mark.long
@pytest.mark.parametrize("server", [FASTAPI, LITSERVE], ids=lambda server: server.name)
def test_running_peer_has_the_answers_of_its_model(server: Server, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").symlink_to(ROOT / FLORENCE.source)
    questions = []
    requests = []
    for seed, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        (tmp_path / f"{seed}.png").write_bytes(scene_png(seed))
        questions.append(BenchQuestion(str(tmp_path / f"{seed}.png"), {}, prompt, length))
        requests.append(PromptedImage.decode(scene_png(seed), prompt, length))
    launch = launch_of(server, tmp_path)
    with running(launch, tmp_path / "server.log"):
        driven = drive(launch.url, False, questions, 2)
    expected = Generator(ROOT / FLORENCE.source, num_threads=1).answer(requests)
    assert [sample.text for sample in driven.samples] == [answer.text for answer in expected]


def test_a_gpu_that_torch_does_not_find_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([], has_gpu=True) == "cpu"
    assert parse(["--device", "cuda"], has_gpu=True) == "cuda"
    with pytest.raises(SystemExit, match="2"):
        parse(["--device", "cuda"], has_gpu=False)
    assert "finds no GPU. On a host with one, `make gpu-check`" in capsys.readouterr().err


def test_all_servers_run_on_one_device(tmp_path: Path) -> None:
    ours = launch_of(OURS, tmp_path, "cuda")
    assert ours.environment["DIPTYCH_DEVICE"] == "cuda"
    for peer in (FASTAPI, LITSERVE):
        assert launch_of(peer, tmp_path, "cuda").command[-1] == "cuda"


def one_round(elapsed_s: float, text: str = "a", token_s: float = 0.01) -> Round:
    lengths = (SHORT_TOKENS, 64)
    samples = tuple(Sample(length, length * token_s, text, length) for length in lengths)
    return Round(elapsed_s, samples)


def test_rates_are_medians_and_percentiles_over_all_answers() -> None:
    assert measures_of([one_round(1.0), one_round(4.0)]) == pytest.approx(
        {
            "requests/s": (2 + 0.5) / 2,
            "tokens/s": (72 + 18) / 2,
            "p50, ms": 80,
            "p95 of short ones, ms": 80,
        }
    )


def test_ours_is_compared_with_the_best_peer() -> None:
    slow = one_round(2.0, token_s=0.02)
    rounds: Rounds = {
        (OURS, DECODE_HEAVY): [one_round(1.0), one_round(1.0, "b")],
        (OURS_DEFAULT, DECODE_HEAVY): [one_round(0.5)],
        (FASTAPI, DECODE_HEAVY): [one_round(4.0), one_round(4.0)],
        (LITSERVE, DECODE_HEAVY): [slow, slow],
        (OURS, MIXED): [one_round(1.0)],
        (LITSERVE, MIXED): [one_round(0.1)],
    }
    rows = [line.split(" | ") for line in ratio_table(rounds).splitlines()[2:]]
    ratios = [(row[1][22:], row[2], row[5], row[6].removesuffix(" |")) for row in rows]
    assert ratios == [
        ("", "requests/s", "litserve workers", "0.10"),
        ("", "tokens/s", "litserve workers", "2.00"),
        ("", "p95 of short ones, ms", "fastapi", "1.00"),
        (", default precision", "tokens/s", "litserve workers", "4.00"),
        (", default precision", "p95 of short ones, ms", "fastapi", "1.00"),
    ]
    assert num_equal(rounds) == (6, 10)
    report = markdown(rounds, {"machine": "a"})
    assert "- machine: a\n" in report
    assert report.endswith(f"## Ours ÷ best peer\n\n{ratio_table(rounds)}\n")

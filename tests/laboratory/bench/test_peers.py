"""Answers of the peers in a batch equal those of single requests, over the network too."""

from functools import cache
from pathlib import Path

import pytest
import torch

from laboratory.bench.material.encoder_graphs import write_encoder_graph
from laboratory.bench.material.records import Question
from laboratory.bench.peers.generation import GeneratedAnswer, Generator, PromptedImage, use_onednn
from laboratory.bench.rounds.client import PeerApi, Round, drive
from laboratory.bench.rounds.servers import Server, peer_launch
from laboratory.bench.rounds.workloads import BenchRequest
from loadtest.processes import Launch, ServerError, cpu_s, free_port, running
from tasks.catalog import CatalogEntry
from tests.support.catalog import FLORENCE, PALIGEMMA, ROOT
from tests.support.scene_images import scene_png

PROMPTS = {
    FLORENCE.id: (
        "What does the image describe?",
        "Describe in detail what is shown in the image.",
        "Locate the objects with category name in the image.",
    ),
    PALIGEMMA.id: ("caption en", "describe en", "detect red circle ; blue square"),
}
LENGTHS = (40, 3, 12)  # the second and third are cut


@pytest.fixture(params=[FLORENCE, PALIGEMMA], ids=[FLORENCE.id, PALIGEMMA.id], scope="module")
def checkpoint(request: pytest.FixtureRequest) -> Path:
    entry: CatalogEntry = request.param
    return ROOT / entry.source


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


def encoder_graph(checkpoint: Path, folder: Path) -> Path:
    """Return the graph of a checkpoint's encoder, which the first call writes."""
    file = folder / checkpoint.name / "encoder.onnx"
    write_encoder_graph(checkpoint, file)
    return file


@cache
def answers_alone(checkpoint: Path) -> list[GeneratedAnswer]:
    """Return the answer to each request in a separate batch."""
    generator = Generator(checkpoint, num_threads=1)
    return [generator.answer([one])[0] for one in prompted(checkpoint)]


@pytest.fixture
def alone(checkpoint: Path) -> list[GeneratedAnswer]:
    return answers_alone(checkpoint)


def prompted(checkpoint: Path) -> list[PromptedImage]:
    prompts = zip(PROMPTS[checkpoint.name], LENGTHS, strict=True)
    return [
        PromptedImage.decode(scene_png(seed), prompt, length)
        for seed, (prompt, length) in enumerate(prompts)
    ]


def test_a_batch_has_the_answers_of_single_requests(
    checkpoint: Path, alone: list[GeneratedAnswer]
) -> None:
    assert Generator(checkpoint, num_threads=1).answer(prompted(checkpoint)) == alone


def test_images_encoded_by_onnx_runtime_have_the_same_answers(
    checkpoint: Path, encoders: Path, alone: list[GeneratedAnswer]
) -> None:
    assert (
        Generator(checkpoint, 1, encoder_graph(checkpoint, encoders)).answer(prompted(checkpoint))
        == alone
    )


@torch.inference_mode()
def test_large_layers_alone_are_computed_by_onednn() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(64, 1024), torch.nn.Linear(1024, 1024, bias=False))
    states = torch.randn(2, 5, 64)
    expected = layers(states)
    use_onednn(layers)
    assert [isinstance(layer, torch.nn.Linear) for layer in layers] == [True, False]
    torch.testing.assert_close(layers(states), expected)


def test_an_answer_ends_at_its_limit(alone: list[GeneratedAnswer]) -> None:
    assert all(
        answer.generated_tokens <= length for answer, length in zip(alone, LENGTHS, strict=True)
    )
    assert alone[1].generated_tokens == 3
    text = "".join(answer.text for answer in alone)
    assert not [token for token in ("<s>", "</s>", "<pad>", "<eos>") if token in text]


@pytest.mark.long
@pytest.mark.parametrize(
    "server",
    [
        Server("fastapi", "fastapi", "", ("--threads", "1")),
        Server(
            "litserve",
            "litserve",
            "",
            ("--threads", "1", "--max-batch-size", "4", "--batch-timeout-s", "0.2"),
        ),
        Server("litserve, unbatched", "litserve", "", ("--threads", "1")),
        Server("litserve onnx", "litserve_onnx", "", ("--threads", "1", "--max-batch-size", "2")),
        Server("bentoml", "bentoml", "", ("--arg", "threads=1", "--arg", "max_batch_size=4")),
    ],
    ids=lambda server: server.name,
)
def test_a_running_peer_has_the_same_answers(
    server: Server, encoders: Path, tmp_path: Path
) -> None:
    checkpoint = ROOT / FLORENCE.source
    requests = [request(tmp_path, seed, text) for seed, text in enumerate(PROMPTS[FLORENCE.id])]
    launch = peer_launch(server, checkpoint, encoder_graph(checkpoint, encoders))
    with running(launch, tmp_path / "server.log") as process_id:
        before_s = cpu_s(process_id)
        done = drive(launch.url, PeerApi(), requests, len(requests), 60)
        assert cpu_s(process_id) > before_s > 0
    assert texts(done) == [answer.text for answer in answers_alone(checkpoint)]


def test_a_failed_start_raises_the_end_of_the_log(tmp_path: Path) -> None:
    launch = Launch(
        ("python3", "-c", "raise SystemExit('no weights here')"), free_port(), "/health"
    )
    with (
        pytest.raises(ServerError, match="no weights here"),
        running(launch, tmp_path / "server.log"),
    ):
        pass


def request(folder: Path, seed: int, prompt: str) -> BenchRequest:
    file = folder / f"{seed}.png"
    file.write_bytes(scene_png(seed))
    return BenchRequest(file, Question(prompt, {}, prompt, LENGTHS[seed]), LENGTHS[seed])


def texts(done: Round) -> list[str]:
    return [sample.answer.text for sample in done.samples]

"""The code of a GPU on the fake card (tests/system/fake_cuda): structure, not numbers.

The two packages for CUDA are 0.8 GB: the short tests run where .ci/run or a long run has installed
them. The long ones take minutes.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from laboratory.gpu_check.__main__ import parse, plan
from runners.errors import EXIT_STATUS
from tests.support.export_cli import ROOT, ModelStore, environment_with
from tests.system.fake_cuda.environment import PYTHON, can_compile, is_installed, make, variables

# cudaError: ECC, NVLink, contained ECC, busy, illegal address, assert, launch failure, unknown
LOST = (214, 220, 226, 46, 700, 710, 719, 999)
TOKENS = ("1 beams", "3 beams", "sampled", "constrained")
# Lines of the check that a broken card misses.
BROKEN = {
    "numbers": ["features", *(f"tokens, {name}" for name in TOKENS)],
    "memory": ["out of memory"],
    "assert": ["lost device"],
    "slow": ["step"],
}
# Graphs of a decoder, without and with adapters; the most kernels of a step, likewise.
NUM_GRAPHS = {"florence-2-mini": (104, 152), "paligemma-mini": (77, 98)}
MAX_KERNELS = {"florence-2-mini": (89, 185), "paligemma-mini": (141, 247)}
MAX_CHOICE_KERNELS = 32

MAX_ADMISSION_LAUNCHES = 6
MAX_CAPTURE_BYTES = 100_000_000  # with the cache of 8 slots


@pytest.fixture(scope="module", autouse=True)
def environment(request: pytest.FixtureRequest) -> None:
    is_long = "not long" not in request.config.option.markexpr
    if not can_compile() or not (is_installed() or is_long):
        pytest.skip(
            "gcc, or torch and ONNX Runtime for CUDA, are missing: the GPU's code is NOT tested"
        )
    make()


def scenario(
    exported: ModelStore, *arguments: str, **settings: str
) -> "subprocess.CompletedProcess[str]":
    command = [str(PYTHON), "-m", "tests.system.fake_cuda.scenarios", *arguments]
    environment = environment_with(exported.home, **(variables() | settings))
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )


def result_of(exported: ModelStore, *arguments: str, **settings: str) -> Any:
    run = scenario(exported, *arguments, **settings)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_serving_waits_for_what_it_reads(exported: ModelStore) -> None:
    """Also: what is copied is pinned, all graphs share one pool of memory, and the decoder has
    priority.
    """
    result = result_of(exported, "order", "florence-2-mini")
    assert result["races"] == 0
    served = result["served"]
    # four replays are the encoder's; each of six images is staged twice
    counts = {"replays": 17, "preferred": 13, "to_device": 25, "to_host": 8, "waits": 28}
    assert served == served | counts | {"events": 18}
    assert not {"pageable", "waits_for_all"} & served.keys()
    assert result["scheduled"]["preferred"] == result["scheduled"]["replays"] > 0
    assert 0 < result["captured"]["num_bytes"] <= MAX_CAPTURE_BYTES


def test_an_encoder_leaves_memory_to_other_runners(exported: ModelStore) -> None:
    sizes = result_of(exported, "small", "florence-2-mini", FAKE_CUDA_MEMORY_MB="80")
    assert sizes == {"1": [16, 8, 4, 2, 1], "4": [8, 4, 2, 1]}


def test_a_gpu_without_kernels_is_refused_at_the_start(exported: ModelStore) -> None:
    run = scenario(exported, "small", "florence-2-mini", FAKE_CUDA_CAPABILITY="100")
    assert "the GPU's is 10.0; TensorRT does not load: libnvinfer.so.10: cannot open" in run.stderr


def test_a_lost_device_is_noticed_after_any_error(exported: ModelStore) -> None:
    run = scenario(exported, "unnoticed", "florence-2-mini", "700")
    assert (run.returncode, run.stdout) == (EXIT_STATUS, ""), run.stderr


def test_a_broken_card_misses_its_aim(exported: ModelStore) -> None:
    """The long test has the other lines of each card."""
    pairs = [(kind, names[0]) for kind, names in BROKEN.items()]
    right = [f"right {name}" for _, name in pairs]
    broken = [f"{kind} {name}" for kind, name in pairs]
    verdicts = result_of(exported, "gpu_check", "florence-2-mini", *right, *broken)
    assert [verdicts[line]["is_met"] for line in (*right, *broken)] == [True] * 4 + [False] * 4
    measured = verdicts["right out of memory"]["measured"]
    least_mb, most_mb = measured["needed by 1 and 16, MB"]
    assert 0 < least_mb < most_mb < measured["ballast, MB"]


@pytest.mark.long
def test_passes_are_captured(exported: ModelStore, model_id: str) -> None:
    result = result_of(exported, "captures", model_id)
    assert result["encoder"] == [16, 8, 4, 2, 1]
    assert (result["decoder"], result["decoder with adapters"]) == NUM_GRAPHS[model_id]
    assert result["prefills"] == [16, 32]
    for kind, limit in zip(("a step", "a step with adapters"), MAX_KERNELS[model_id], strict=True):
        assert 0 < result[f"kernels of {kind}"] <= limit
    assert 0 < result["kernels of a choice"] <= MAX_CHOICE_KERNELS
    assert (result["stray"], result["illegal"]) == (0, 0)
    batch = result["batch of 3"]
    assert batch["replays"] == 2
    assert not {"waits_for_all", "races"} & batch.keys(), "it waits for the decoder's work"
    assert result["freed features"] == {"events": 3}, "the decoder may still read them"


@pytest.mark.long
def test_steps_and_admissions_need_little_work(exported: ModelStore, model_id: str) -> None:
    result = result_of(exported, "figures", model_id)
    step = {"launches": 1, "replays": 2, "to_device": 1, "to_host": 1, "waits": 1}
    for name, figures in result.items():
        if name.startswith("step"):
            assert figures == figures | step, name
    mixed = result["admission of 8, 1 with an adapter"]
    assert mixed["replays"] == 5  # parts of 4, 2, 1 and 1, and the choice
    assert mixed["launches"] <= MAX_ADMISSION_LAUNCHES


@pytest.mark.long
def test_failed_allocations_leak_nothing(exported: ModelStore) -> None:
    result = result_of(exported, "memory", "florence-2-mini")
    outcomes = {*result["starts"].values()}.union(*result["served"].values())
    assert outcomes == {"answered", "out of memory"}
    for name, served in result["served"].items():
        # a prefill is repeated in halves
        assert name.startswith("1000000") or served == ["answered"] * 8, name
    assert result["after"] <= result["idle"]


@pytest.mark.long
@pytest.mark.parametrize("code", LOST)
def test_lost_device_ends_the_process(exported: ModelStore, code: int) -> None:
    run = scenario(exported, "lost", "florence-2-mini", str(code))
    assert (run.returncode, run.stdout) == (EXIT_STATUS, ""), run.stderr
    assert "lost its GPU" in run.stderr


@pytest.mark.long
def test_failed_product_fails_its_sequence(exported: ModelStore) -> None:
    first, second = result_of(exported, "failed", "florence-2-mini")["outcomes"]
    assert "CUBLAS_STATUS_EXECUTION_FAILED" in first
    assert second == "answered"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["right", *BROKEN])
def test_gpu_check_of_a_whole_card(exported: ModelStore, tmp_path: Path, kind: str) -> None:
    settings = {"FAKE_CUDA_CARD": str(tmp_path / "card"), "FAKE_CUDA_MEMORY_MB": "9000"}
    names = [check.name for check in plan(parse(["florence-2-mini"]))]
    lines = [f"{kind} {name}" for name in names]
    verdicts = result_of(exported, "gpu_check", "florence-2-mini", *lines, **settings)
    for name, line in zip(names, lines, strict=True):
        assert verdicts[line]["is_met"] == (name not in BROKEN.get(kind, ())), verdicts[line]
    service = verdicts[f"{kind} service"]["measured"]
    assert service["models"] == 4
    assert 0 < service["p50, ms"] <= service["p95, ms"]
    assert "libnvinfer" in verdicts[f"{kind} encoder, TensorRT"]["measured"]["missing"]

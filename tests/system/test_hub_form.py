"""Checkpoints in the form of the released ones go through export and service, and answer as
transformers does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors import safe_open

from export.checks.reference import Reference
from export.scenes import render_scene, sample_scene
from laboratory.evaluation import encoded
from runners.tokens.tokenizer import PromptTokenizer
from tasks.families import FAMILIES
from tasks.parameters import parse_parameters
from tasks.table import TASKS
from tests.support.catalog import CATALOG
from tests.support.export_cli import ModelStore
from tests.support.hub_form import EOS_TOKEN_IDS, KINDS
from tests.support.running_service import RunningService, forked_service

pytestmark = pytest.mark.long
SIDE_PX = 192
NUM_SCENES = 2
MAX_NEW_TOKENS = 24
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("captioning", {}),
    ("ocr", {}),
    ("open_vocabulary_detection", {"labels": "red circle"}),
]


@dataclass(frozen=True)
class Released:
    """The served checkpoints."""

    folder: Path
    service: RunningService


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    folder = tmp_path_factory.mktemp("hub form")
    home = folder / "bentoml"
    settings = {f"DIPTYCH_{part}_PRECISION": "float32" for part in ("ENCODER", "DECODER")}
    run = ModelStore(home).forked("-m", "tests.support.hub_form", str(folder))
    assert run.returncode == 0, run.stderr
    with forked_service(
        home, folder / "service.log", DIPTYCH_MODELS=",".join(KINDS), **settings
    ) as service:
        yield Released(folder, service)


@pytest.mark.parametrize("model_id", KINDS)
def test_answers_are_those_of_transformers(released: Released, model_id: str) -> None:
    reference = Reference.load(released.folder / model_id)
    written = list[tuple[int, ...]]()
    num_beams = reference.model.generation_config.num_beams or 1
    stream_of = PromptTokenizer.load(released.folder / model_id / "tokenizer.json").text_stream
    ends = reference.model.generation_config.eos_token_id
    dropped = {
        reference.model.config.get_text_config().bos_token_id,
        *(ends if isinstance(ends, list) else [ends]),
    }
    for seed in range(NUM_SCENES):
        image = render_scene(sample_scene(seed), SIDE_PX)
        (features,) = reference.image_features([image])
        for task, values in ASKED:
            expected = reference.generate(
                prompt(model_id, task, values), image, features, MAX_NEW_TOKENS, num_beams
            )
            stream = stream_of()
            text = "".join(
                stream.push(token_id) for token_id in expected.token_ids if token_id not in dropped
            )
            answer = ask(released.service, model_id, task, values, encoded(image).data)
            assert answer["raw_text"] == text
            written.append(expected.token_ids)
    assert sum(map(len, written)) > 3 * len(written)  # answers are not empty
    if model_id.startswith("paligemma-2"):
        assert any(token_ids[-1] == EOS_TOKEN_IDS[1] for token_ids in written)


def prompt(model_id: str, task: str, values: dict[str, Any]) -> str:
    entry = CATALOG[model_id]
    listed = {name: [value] if name == "labels" else value for name, value in values.items()}
    parameters = parse_parameters(TASKS[task], listed)
    ((segment,),) = FAMILIES[entry.family].task_prompts(entry, task, parameters, (SIDE_PX, SIDE_PX))
    return segment.text


def ask(
    service: RunningService, model_id: str, task: str, values: dict[str, Any], image: bytes
) -> dict[str, Any]:
    options = {
        "model": model_id,
        "task": task,
        "constrained": "false",
        "max_new_tokens": str(MAX_NEW_TOKENS),
    }
    response = httpx.post(
        f"{service.url}/v1/predict", data=options | values, files={"image": image}, timeout=90
    )
    answer: dict[str, Any] = response.raise_for_status().json()
    return answer


@pytest.mark.parametrize("model_id", KINDS)
def test_weights_are_in_shards_under_the_released_names(released: Released, model_id: str) -> None:
    names: set[str] = set()
    files = list((released.folder / model_id).glob("model-*-of-*.safetensors"))
    assert len(files) == 3
    for file in files:
        with safe_open(file, "pt") as tensors:
            names.update(tensors.keys())
    assert not any(name.startswith("lm_head") for name in names)
    if model_id.startswith("paligemma"):
        assert {name.split(".layers")[0] for name in names if ".layers" in name} == {
            "language_model.model",
            "vision_tower.vision_model.encoder",
        }

"""Models behind engines of OpenAI's protocol: another Diptych, whose answers are those asked of it
directly, and `transformers serve` with a tiny random Qwen3-VL.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from diptych_client import Answer, AnswerOptions, Client, DetectionsResult, ModelFailure, NotReady
from tests.support.export_cli import ROOT, ModelStore
from tests.support.running_service import RunningService, forked_service, free_port
from tests.support.waiting import running_program

FAR = "far-paligemma"
DOWN = "down"
IMAGE = ROOT / "service/web/samples/scene.png"
FIND = ("open_vocabulary_detection", {"labels": ["circle", "blue triangle"]})
QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    FIND,
    ("captioning", {"detail": "detailed"}),
    ("phrase_grounding", {"phrases": ["orange circle"]}),
    ("ocr", {}),
    ("visual_question_answering", {"question": "how many shapes are there?"}),
]


def settings_of(file: Path, **urls: tuple[str, str, str]) -> dict[str, str]:
    """Return the settings of a service whose engines have these URLs, models and dialects."""
    rows = []
    for model_id, (url, model, dialect) in urls.items():
        row = {"id": model_id.replace("_", "-"), "family": "openai", "url": url}
        rows.append({**row, "model": model, "dialect": dialect})
    file.write_text(json.dumps({"models": rows}), encoding="utf-8")
    return {"DIPTYCH_MODELS": "florence-2-mini", "DIPTYCH_REMOTE_MODELS": str(file)}


@pytest.fixture(scope="module")
def near(exported: ModelStore, folder: Path, service: RunningService) -> Iterator[RunningService]:
    """A service with one model of its own, one of `service`, and one whose engine is down."""
    settings = settings_of(
        folder / "remote.yaml",
        far_paligemma=(f"{service.url}/v1", "paligemma-mini", "diptych"),
        down=("http://127.0.0.1:1/v1", "nobody", "gemma"),
    )
    with forked_service(exported.home, folder / "near.log", **settings) as running:
        yield running


@pytest.mark.parametrize("interface", ["rest", "grpc"])
def test_answers_are_those_of_the_engine(
    service: RunningService, near: RunningService, interface: str
) -> None:
    url = near.url if interface == "rest" else f"grpc://{near.grpc_address}"
    with Client(service.url) as direct, Client(url) as client:
        for task, parameters in QUESTIONS:
            expected = direct.predict(IMAGE, task, parameters, model="paligemma-mini")
            assert client.predict(IMAGE, task, parameters, model=FAR).result == expected.result
            *_, streamed = client.stream(IMAGE, task, parameters, model=FAR)
            assert isinstance(streamed, Answer)
            assert streamed.result == expected.result
        options = AnswerOptions(tiles="2x2")
        expected = direct.predict(IMAGE, *FIND, model="paligemma-mini", options=options)
        tiled = client.predict(IMAGE, *FIND, model=FAR, options=options)
    assert isinstance(tiled.result, DetectionsResult)
    assert isinstance(expected.result, DetectionsResult)
    assert len(tiled.result.detections) == len(expected.result.detections) > 0


def test_engine_that_is_down_fails_alone(near: RunningService) -> None:
    with Client(near.url) as client:
        comparison = client.compare(IMAGE, *FIND)
        assert [model.id for model in client.models()] == ["florence-2-mini", FAR, DOWN]
    *answers, failed = comparison.answers
    assert [answer.model for answer in answers] == ["florence-2-mini", FAR]
    assert isinstance(failed, ModelFailure)
    assert (failed.model, failed.error.code) == (DOWN, "not_ready")
    assert "the engine of down is not ready" in near.log.read_text(encoding="utf-8")


SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_qwen(folder: Path) -> None:
    """Write a Qwen3-VL of two narrow layers with random weights."""
    tokenizer = tokenizer_of_bytes()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    sizes = {"hidden_size": 32, "intermediate_size": 64}
    text: dict[str, Any] = {
        **sizes,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]},
    }
    vision = {
        **sizes,
        "depth": 2,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    library: Any = transformers  # its classes have no types
    config = library.Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    model = library.Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    patches = {"patch_size": 16, "merge_size": 2}
    sides = {"min_pixels": 32 * 32, "max_pixels": 64 * 64}
    library.Qwen2VLImageProcessor(**patches, **sides).save_pretrained(folder)
    library.Qwen3VLVideoProcessor(**patches).save_pretrained(folder)


def tokenizer_of_bytes() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS,
        chat_template=TEMPLATE,
    )


@pytest.mark.long
def test_transformers_serve(exported: ModelStore, folder: Path) -> None:
    """Text streams, boxes of a random model are none, and a kill in the middle is an error."""
    model = str(folder / "tiny-qwen")
    write_tiny_qwen(Path(model))
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model]
    command += ["--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    settings = settings_of(folder / "qwen.yaml", qwen=(f"{url}/v1", model, "qwen3-vl"))

    def is_ready() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{url}/v1/models").is_success
        return False

    log = folder / "transformers.log"
    with (
        running_program(command, is_ready, log, {"HF_HUB_OFFLINE": "1"}) as engine,
        forked_service(exported.home, folder / "qwen.log", **settings) as service,
        Client(service.url, max_retries=0) as client,
    ):
        options = AnswerOptions(max_new_tokens=30)
        *pieces, answer = client.stream(IMAGE, "captioning", model="qwen", options=options)
        assert isinstance(answer, Answer)
        assert "".join(map(str, pieces)) == answer.raw_text
        assert answer.usage.generated_tokens == 30
        boxes = client.predict(IMAGE, *FIND, model="qwen", options=options)
        assert boxes.result == DetectionsResult(())
        options = AnswerOptions(max_new_tokens=1000)
        stream = client.stream(IMAGE, "captioning", model="qwen", options=options)
        next(stream)
        engine.kill()
        with pytest.raises(NotReady, match="the engine of qwen"):
            list(stream)
        assert client.predict(IMAGE, "ocr", model="florence-2-mini").finish_reason == "stop"

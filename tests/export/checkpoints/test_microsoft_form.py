"""Florence-2 in Microsoft's own form gives the answers of Microsoft's code, adapted or not."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from export.checkpoints.tensors import CheckpointTensors, write_decoder_weights
from export.checks.asking import Question
from export.checks.reference import Reference
from export.errors import SourceError
from export.scenes import render_scene, sample_scene
from runners.adapters.low_rank import Adapters
from runners.adapters.peft import read_adapter
from runners.decoder.batch import generate_all
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from tasks.catalog import TaskOverride
from tests.support.catalog import FLORENCE
from tests.support.decoder_cases import reference_answer
from tests.support.lora import unmerged, write_adapter
from tests.support.microsoft_form import (
    NUM_ROWS,
    MicrosoftModel,
    add_tokens,
    converted,
    update_json,
    write_microsoft_form,
)
from wire.artifacts.adapter_folder import WEIGHTS_FILE, AdapterLimits
from wire.artifacts.manifest import DECODER_FILE

PROMPTS = ("What does the image describe?", "Locate the objects with category name in the image.")
MAX_NEW_TOKENS = 16
PADDED_ROWS = 51328
PREFIX = "base_model.model."
# Public notebooks have this list; some names match no module of the language model.
TARGETS = ["q_proj", "o_proj", "k_proj", "v_proj", "linear", "Conv2d", "lm_head", "fc2"]
TASK = "visual_question_answering"
QUESTIONS = ("What is the total?", ", 5 or 7?", "Ünder 3 €?", "it's when?")


@pytest.fixture(scope="module")
def model() -> MicrosoftModel:
    return MicrosoftModel.random()


@pytest.fixture(scope="module")
def original(model: MicrosoftModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as Microsoft publishes it."""
    folder = tmp_path_factory.mktemp("microsoft")
    write_microsoft_form(model.weights(), folder)
    return folder


@pytest.fixture(scope="module")
def plain(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the form that the export reads."""
    return converted(original, tmp_path_factory.mktemp("converted") / "plain")


def exported_decoder(checkpoint: Path, folder: Path, adapters: Adapters | None = None) -> Decoder:
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    write_decoder_weights(CheckpointTensors.open(checkpoint), folder / DECODER_FILE)
    return load_decoder(folder, "florence2", "float32", "cpu", adapters=adapters)


def answered(decoder: Decoder, *requests: SequenceRequest) -> list[list[int]]:
    """Return answers with the checkpoint's 3 beams."""
    with_beams = [replace(request, num_beams=3) for request in requests]
    return [list(answer.token_ids) for answer in generate_all(decoder, with_beams)]


def test_answers_are_those_of_microsofts_code(
    model: MicrosoftModel, plain: Path, tmp_path: Path
) -> None:
    reference = Reference.load(plain)
    images = [render_scene(sample_scene(seed), 768) for seed in range(2)]
    inputs = reference.processor.image_processor(images, do_resize=False, return_tensors="pt")
    features = model.image_features(inputs["pixel_values"])
    assert torch.allclose(reference.image_features(images), features, atol=1e-3)
    decoder = exported_decoder(plain, tmp_path)
    assert decoder.rules.num_beams == 3
    for text in PROMPTS:
        prompt_ids = decoder.text.prompt_ids([(text, False)])
        assert prompt_ids == reference.prompt_ids(text, images[0])
        for length in (MAX_NEW_TOKENS, 1):
            requests = [SequenceRequest(row, prompt_ids, length) for row in features]
            expected = [model.generate(row, prompt_ids, length) for row in features]
            assert answered(decoder, *requests) == expected
            assert length == 1 or expected[0] != expected[1]


def test_an_adapters_answers_are_those_of_peft_over_microsofts_code(
    model: MicrosoftModel, plain: Path, tmp_path: Path
) -> None:
    language_model = deepcopy(model.language_model)
    folder = write_adapter(
        language_model, tmp_path / "adapter", 0, r=8, target_modules=TARGETS, use_rslora=True
    )
    tuned = replace(model, language_model=unmerged(language_model, folder))
    named = {}
    for name, tensor in load_file(folder / WEIGHTS_FILE).items():
        named[name.replace(PREFIX, f"{PREFIX}language_model.")] = tensor
    save_file(named, folder / WEIGHTS_FILE)
    adapters = Adapters()
    decoder = exported_decoder(plain, tmp_path, adapters)
    adapters.add("own", read_adapter(folder, tmp_path / DECODER_FILE, AdapterLimits()))
    prompt_ids = decoder.text.prompt_ids([(PROMPTS[1], False)])
    width = model.language_model.config.d_model
    for features in torch.randn(3, 20, width, generator=torch.Generator().manual_seed(0)):
        request = SequenceRequest(features, prompt_ids, MAX_NEW_TOKENS)
        answers = answered(decoder, replace(request, adapter="own"), request)
        expected = [part.generate(features, prompt_ids, MAX_NEW_TOKENS) for part in (tuned, model)]
        assert answers == expected
        assert answers[0] != answers[1]


def test_added_tokens_are_control_tokens_and_a_users_text_never_is(
    plain: Path, tmp_path: Path
) -> None:
    """A fine-tune with added tokens, made as the notebooks make one."""
    folder = Path(shutil.copytree(plain, tmp_path / "tuned"))
    add_tokens(folder)
    reference = Reference.load(folder)
    num_rows = NUM_ROWS + 3
    assert len(reference.model.get_input_embeddings().weight) == num_rows
    decoder = exported_decoder(folder, tmp_path / "artifacts")
    entry = replace(FLORENCE, tasks={TASK: TaskOverride("<DocVQA>{question}")})
    image = Image.new("RGB", (768, 768), "white")
    (features,) = reference.image_features([image])
    for text in QUESTIONS:
        (question,) = Question.of_task(entry, TASK, {"question": text}, (768, 768))
        prompt_ids = decoder.text.prompt_ids(question.segments)
        assert prompt_ids == reference.prompt_ids(f"<DocVQA>{text}", image)
        assert prompt_ids[1] == num_rows - 2
        expected = reference_answer(
            reference, f"<DocVQA>{text}", image, features, 12, num_beams=3
        ).token_ids
        assert answered(decoder, SequenceRequest(features, prompt_ids, 12)) == [list(expected)]
    from_user = decoder.text.prompt_ids([("<DocVQA><my_label>", False)])
    assert not {num_rows - 2, num_rows - 1} & set(from_user)


def test_new_rows_are_never_chosen(plain: Path) -> None:
    embeddings = load_file(plain / "model.safetensors")["model.language_model.shared.weight"]
    assert len(embeddings) == PADDED_ROWS
    states = torch.randn(500, embeddings.shape[1])
    for states_of_sign in (states, -states):
        assert (states_of_sign @ embeddings.float().T).argmax(-1).max() < NUM_ROWS


@pytest.mark.parametrize(
    ("file_name", "values"),
    [
        ("config.json", {"vision_config": {"image_pos_embed": "learned_abs_2d"}}),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}),
        ("preprocessor_config.json", {"size": [768]}),
    ],
)
def test_files_of_another_kind_are_refused_in_one_line(
    file_name: str, values: dict[str, Any], original: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(original, tmp_path / "checkpoint"))
    update_json(checkpoint / file_name, **values)
    with pytest.raises(SourceError, match=r"are not those of Microsoft's form|has size") as refused:
        converted(checkpoint, tmp_path / "converted")
    assert "\n" not in str(refused.value)

"""A fine-tune with added tokens, made as the notebooks make one."""

import shutil
from dataclasses import replace
from pathlib import Path

from PIL import Image

from export.checkpoints.tensors import CheckpointTensors, write_decoder_weights
from export.checks.reference import Reference
from runners.models.load import load_decoder
from tasks.catalog import TaskOverride
from tasks.florence2.prompts import task_prompts
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import FLORENCE
from tests.support.checkpoint_forms import add_tokens
from tests.support.microsoft_form import answered
from tests.support.reference_answers import reference_answer
from wire.artifacts.manifest import DECODER_FILE

NUM_ROWS = 51292
TASK = "visual_question_answering"
QUESTIONS = (
    "What is the total?",
    "who signed it",
    "is it paid?",
    ", 5 or 7?",
    "Ünder 3 €?",
    "it's when?",
)


def test_added_tokens_are_control_tokens_and_the_users_text_never_becomes_one(
    plain: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "tuned"))
    add_tokens(folder)
    reference = Reference.load(folder)
    assert len(reference.model.get_input_embeddings().weight) == NUM_ROWS
    artifacts = Path(shutil.copytree(folder, tmp_path / "artifacts"))
    write_decoder_weights(CheckpointTensors.open(folder), artifacts / DECODER_FILE)
    decoder = load_decoder(artifacts, "florence2", "float32", "cpu")
    entry = replace(FLORENCE, tasks={TASK: TaskOverride("<DocVQA>{question}")})
    image = Image.new("RGB", (768, 768), "white")
    (features,) = reference.image_features([image])
    for question in QUESTIONS:
        asked = parse_parameters(TASKS[TASK], {"question": question})
        (segments,) = task_prompts(entry, TASK, asked, (768, 768))
        prompt_ids = decoder.text.prompt_ids([(each.text, each.is_control) for each in segments])
        text = f"<DocVQA>{question}"
        assert prompt_ids == reference.prompt_ids(text, image)
        assert prompt_ids[1] == NUM_ROWS - 2
        expected = reference_answer(reference, text, image, features, 12, num_beams=3).token_ids
        assert answered(decoder, features[None], prompt_ids, 12) == [list(expected)]
    from_user = decoder.text.prompt_ids([("<DocVQA><my_label>", False)])
    assert not {NUM_ROWS - 2, NUM_ROWS - 1} & set(from_user)

"""An adapter as published, of Microsoft's model: its answers are those of PEFT's model."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from export.checkpoints.tensors import CheckpointTensors, write_decoder_weights
from runners.adapters.low_rank import Adapters
from runners.adapters.peft import read_adapter
from runners.decoder.batch import generate_all
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from tests.support.lora import unmerged, write_adapter
from tests.support.microsoft_form import MicrosoftModel
from wire.artifacts.adapter_folder import WEIGHTS_FILE, AdapterLimits
from wire.artifacts.manifest import DECODER_FILE

PROMPT = "Locate the objects with category name in the image."
NUM_IMAGES = 3
NUM_IMAGE_TOKENS = 20
MAX_NEW_TOKENS = 16
# Public notebooks have this list; some names match no module of the language model.
TARGETS = ["q_proj", "o_proj", "k_proj", "v_proj", "linear", "Conv2d", "lm_head", "fc2"]
PREFIX = "base_model.model."


def test_answers_are_those_of_peft_over_microsofts_code(
    model: MicrosoftModel, plain: Path, tmp_path: Path
) -> None:
    language_model = deepcopy(model.language_model)
    folder = write_adapter(
        language_model, tmp_path / "adapter", 0, r=8, target_modules=TARGETS, use_rslora=True
    )
    tuned = replace(model, language_model=unmerged(language_model, folder))
    named = {
        name.replace(PREFIX, f"{PREFIX}language_model."): tensor
        for name, tensor in load_file(folder / WEIGHTS_FILE).items()
    }
    save_file(named, folder / WEIGHTS_FILE)
    write_decoder_weights(CheckpointTensors.open(plain), tmp_path / DECODER_FILE)
    for file in plain.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    adapters = Adapters()
    decoder = load_decoder(tmp_path, "florence2", "float32", "cpu", adapters=adapters)
    adapters.add("own", read_adapter(folder, tmp_path / DECODER_FILE, AdapterLimits()))
    prompt_ids = decoder.text.prompt_ids([(PROMPT, False)])
    width = model.language_model.config.d_model
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(NUM_IMAGES, NUM_IMAGE_TOKENS, width, generator=generator)
    requests = [
        SequenceRequest(each, prompt_ids, MAX_NEW_TOKENS, num_beams=3, adapter=adapter)
        for each in features
        for adapter in ("own", None)
    ]
    answers = [list(answer.token_ids) for answer in generate_all(decoder, requests)]
    expected = [
        source.generate(each, prompt_ids, MAX_NEW_TOKENS)
        for each in features
        for source in (tuned, model)
    ]
    assert answers == expected
    assert answers[0::2] != answers[1::2]

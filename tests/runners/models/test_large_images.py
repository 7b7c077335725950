"""PaliGemma-3b's widths with an image of 896 px, 4,096 image tokens: the tokens of transformers' `generate`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import Florence2Config, PaliGemmaConfig

from export.artifacts.checkpoint_tensors import CheckpointTensors
from export.artifacts.decoder_weights import write_decoder_weights
from export.checkpoints.random_weights import SHAPES, write_random_checkpoint
from export.checks.reference import Reference
from export.scenes import render_scene, sample_scene
from runners.artifacts.manifest import DECODER_FILE
from runners.decoder.batch import generate_all
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder

NAME, SIDE_PX, NUM_IMAGE_TOKENS, MAX_NEW_TOKENS = "paligemma-3b-mix-224", 896, 4096, 8


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One layer in each stack: 0.6 billion parameters, most of them embeddings."""

    def config(max_layers: int) -> Florence2Config | PaliGemmaConfig:
        changed = shape.config(max_layers)
        vision_config: Any = changed.vision_config
        vision_config.image_size = SIDE_PX
        return changed

    shape = SHAPES[NAME]
    large = replace(shape, config=config, image_size_px=SIDE_PX, num_image_tokens=NUM_IMAGE_TOKENS)
    monkeypatch.setitem(SHAPES, NAME, large)
    write_random_checkpoint(NAME, tmp_path, max_layers=1)
    return tmp_path


@pytest.mark.long
def test_an_answer_over_4096_image_tokens_is_that_of_generate(checkpoint: Path) -> None:
    reference, image = Reference.load(checkpoint), render_scene(sample_scene(0), SIDE_PX)
    (features,) = reference.image_features([image])
    assert len(features) == NUM_IMAGE_TOKENS
    expected = reference.generate("caption en", image, features, MAX_NEW_TOKENS)
    write_decoder_weights(CheckpointTensors.open(checkpoint), checkpoint / DECODER_FILE)
    reference.model.config.to_json_file(checkpoint / "config.json", use_diff=False)
    del reference  # before the second copy is loaded
    decoder = load_decoder(checkpoint, "paligemma", "float32", "cpu")
    request = SequenceRequest(features, decoder.prompt_ids([("caption en", False)]), MAX_NEW_TOKENS)
    (written,) = generate_all(decoder, [request])
    assert written.token_ids == expected.token_ids
    assert len(set(written.token_ids)) > MAX_NEW_TOKENS // 2  # not one token over and over

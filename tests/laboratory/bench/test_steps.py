from dataclasses import replace

import pytest

from laboratory.bench.steps import measure_steps
from runners.models.load import load_decoder
from tests.support.export_cli import EMBEDDED, ModelStore
from wire.artifacts.manifest import read_manifest


@pytest.mark.parametrize("model_id", EMBEDDED)
def test_a_checkpoint_whose_answer_ends_at_once_or_has_beams_has_as_many_steps(
    model_id: str, exported: ModelStore
) -> None:
    folder = exported.newest(model_id)
    manifest = read_manifest(folder)
    decoder = load_decoder(folder, manifest.family, "float32", "cpu")
    decoder.rules = replace(decoder.rules, num_beams=3)
    for num_sequences in (1, 3):
        measured = measure_steps(decoder, manifest, num_sequences)
        # 48 tokens, one or two of them by prefill and forced start
        assert measured["num_steps"] in (46, 47)
        assert 0 < measured["model_s"] < measured["step_s"]

import shutil
from pathlib import Path
from typing import Any

import pytest

from export.checkpoints.bases import CheckpointFacts, base_entry, hub_entry, is_hub_entry
from export.checkpoints.tensors import CheckpointTensors, check_vocabulary
from export.errors import SourceError
from tasks.catalog import entry_row, model_id_of, parse_entry
from tests.support.catalog import CATALOG, FLORENCE, ROOT
from tests.support.microsoft_form import microsoft_config


def paligemma_config(width: int, side: int | None) -> dict[str, Any]:
    vision = {} if side is None else {"image_size": side}
    return {
        "model_type": "paligemma",
        "text_config": {"hidden_size": width},
        "vision_config": vision,
    }


def florence_config(**text: int) -> dict[str, Any]:
    return {"model_type": "florence2", "text_config": text, "vision_config": {}}


@pytest.mark.parametrize(
    ("config", "model_id"),
    [
        (florence_config(d_model=768), "florence-2-base"),
        (florence_config(d_model=1024), "florence-2-large"),
        (florence_config(), "florence-2-large"),
        (paligemma_config(2048, None), "paligemma-3b-pt-224"),
        (paligemma_config(2304, 448), "paligemma-2-3b-pt-448"),
        (paligemma_config(4608, 896), "paligemma-2-28b-pt-896"),
        (paligemma_config(99, 448), "paligemma-3b-pt-224"),
    ],
)
def test_a_configuration_names_the_released_model_that_it_descends_from(
    config: dict[str, Any], model_id: str
) -> None:
    assert base_entry(config) == CATALOG[model_id]


def test_a_repository_without_an_entry_gets_one_from_its_configuration() -> None:
    entry = hub_entry("Someone/My_Tune", microsoft_config())
    assert (entry.id, entry.source) == ("someone--my-tune", "Someone/My_Tune")
    assert entry.id == model_id_of("hf:Someone/My_Tune")
    assert (entry.organization, entry.license) == (
        "Someone",
        "see https://huggingface.co/Someone/My_Tune",
    )
    assert (entry.revision, entry.weights_sha256) == (None, None)
    assert base_entry(microsoft_config()).forced_names
    assert not entry.forced_names  # it may write labels of its own
    assert is_hub_entry(entry)
    assert parse_entry(entry_row(entry)) == entry
    assert not any(map(is_hub_entry, CATALOG.values()))


def test_a_repository_of_the_catalog_keeps_its_entry() -> None:
    released = CATALOG["florence-2-base"]
    entry = hub_entry(released.source, florence_config(d_model=768))
    assert entry.id == "florence-community--florence-2-base"
    assert (entry.revision, entry.license) == (released.revision, "MIT")


def test_a_fine_tune_of_google_keeps_the_task_that_it_was_trained_on() -> None:
    config = paligemma_config(2048, 224)
    entry = hub_entry("google/paligemma-3b-ft-refcoco-seg-224", config)
    assert entry.task_ids == ("instance_segmentation",)
    assert not entry.has_labels("instance_segmentation")
    for name in ("someone/paligemma-3b-ft-refcoco-seg-224", "someone/paligemma-3b-ft-forms-448"):
        assert hub_entry(name, config).task_ids == CATALOG["paligemma-3b-pt-224"].task_ids


def test_a_name_that_is_too_long_for_the_store_is_refused() -> None:
    with pytest.raises(SourceError, match=r"more than 63 characters: give .* a catalog entry"):
        hub_entry(f"owner/{'name' * 20}", florence_config())


def test_another_checkpoint_than_the_entrys_is_refused_with_both_numbers() -> None:
    facts = CheckpointFacts(2610240, 320, 192)
    facts.check(FLORENCE, FLORENCE.source)
    assert facts.applied_to(CATALOG["florence-2-base"]).parameters == 2610240
    message = "has CheckpointFacts.parameters=2610240, .*-base has .*parameters=231443968"
    with pytest.raises(SourceError, match=message):
        facts.check(CATALOG["florence-2-base"], FLORENCE.source)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    small = ROOT / FLORENCE.source
    tensors = CheckpointTensors.open(small)
    check_vocabulary(small, tensors)
    shutil.copy(ROOT / "models" / "paligemma-mini" / "tokenizer.json", tmp_path)
    with pytest.raises(SourceError, match=r"tokenizer\.json has \d+ tokens, the embeddings have"):
        check_vocabulary(tmp_path, tensors)

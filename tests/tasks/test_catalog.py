import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from tasks.catalog import (
    CatalogError,
    adapter_entry,
    entry_row,
    load_catalog,
    model_id_of,
    parse_entry,
)
from tasks.table import TASKS
from tests.support.catalog import CATALOG, FLORENCE, PALIGEMMA, ROOT

ROW: dict[str, Any] = {
    "id": "some-model",
    "family": "florence2",
    "source": "owner/name",
    "revision": None,
    "organization": "Someone",
    "category": "Vision-language model",
    "modality": "image and text to text",
    "license": "MIT",
    "release_date": "2024-06",
    "parameters": 5,
    "context_window": 1024,
    "resolution": 768,
    "precision": {
        "cpu": {"encoder": "int8", "decoder": "bfloat16"},
        "cuda": {"encoder": "float16", "decoder": "float32"},
    },
    "features": ["polygons"],
}


RELEASED = [entry for entry in CATALOG.values() if entry.organization != "Diptych"]


@pytest.mark.parametrize("side", [224, 448, 896])
def test_an_entry_with_a_star_stands_for_every_repository_that_matches(side: int) -> None:
    path = ROOT / "models" / "catalog.yaml"
    wanted = f"paligemma-3b-ft-refcoco-seg-{side}"
    assert not any("*" in model_id for model_id in CATALOG)
    entry = load_catalog(path, [wanted, "paligemma-3b-ft-vqav2-300", "another"])[wanted]
    assert (entry.source, entry.revision) == (f"google/{wanted}", "bfloat16")
    base = CATALOG[f"paligemma-3b-pt-{side}"]
    assert (entry.parameters, entry.resolution) == (base.parameters, side)
    assert "paligemma-3b-ft-vqav2-300" not in load_catalog(path, ["paligemma-3b-ft-vqav2-300"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "a/b"}, r"some-\*: id and source must have one \* each"),
        ({"id": "*-*"}, r"\*-\*: id and source must have one \* each"),
        ({"parameters": 0}, "some-x: parameters must be a whole number above 0"),
        ({"variants": ["x"]}, r"some-\*: variants must map names to tasks; not \['x'\]"),
        ({"variants": {"vqa": None}}, r"variants.vqa must be a mapping of task ids; not None"),
        ({"variants": {"vqa": {"ocr": {}}}}, "some-vqa: tasks.ocr must be null, or for"),
    ],
)
def test_an_invalid_entry_with_a_star_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    row = ROW | {"id": "some-*", "source": "owner/some-*"} | change
    (tmp_path / "catalog.yaml").write_text(yaml.safe_dump({"models": [row]}))
    with pytest.raises(CatalogError, match=message):
        load_catalog(tmp_path / "catalog.yaml")


def test_a_name_in_place_of_a_star_offers_the_tasks_of_its_variant(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    overrides = {
        "instance_segmentation": {"template": "{phrase}", "labels": False},
        "visual_question_answering": {"template": "{question}", "separator": " | "},
    }
    row = ROW | {"id": "some-*", "source": "owner/some-*", "variants": {"seg": overrides}}
    path.write_text(yaml.safe_dump({"models": [row]}))
    entry = load_catalog(path, ["some-seg"])["some-seg"]
    assert (entry.source, entry.task_ids) == ("owner/some-seg", tuple(overrides))
    assert not entry.has_labels("instance_segmentation")
    assert entry.tasks["visual_question_answering"].separator == " | "
    assert parse_entry(entry_row(entry)) == entry
    with pytest.raises(CatalogError, match=r"some-other is not in the catalog: .* one of seg"):
        load_catalog(path, ["some-other"])


def test_names_are_forced_only_where_the_entry_says_so() -> None:
    base = parse_entry(ROW | {"forced_names": True})
    assert base.forced_names
    assert not parse_entry(ROW).forced_names
    assert not adapter_entry("tuned", "folder", {}, base).forced_names
    assert adapter_entry("tuned", "folder", {"forced_names": True}, base).forced_names


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("florence-2-base", "florence-2-base"),
        ("hf:Owner/My_Model.v2", "owner--my-model.v2"),
    ],
)
def test_a_model_is_named_by_its_id_or_its_repository(name: str, model_id: str) -> None:
    assert model_id_of(name) == model_id


def test_resolution_is_that_of_the_repository_and_adds_only_position_embeddings() -> None:
    paligemma = [entry for entry in RELEASED if entry.family == "paligemma"]
    assert all(entry.source.endswith(f"-{entry.resolution}") for entry in paligemma)
    for model in {entry.source.rsplit("-", 2)[0] for entry in paligemma}:
        siblings = [entry for entry in paligemma if entry.source.rsplit("-", 2)[0] == model]
        assert (
            len({entry.parameters - 1152 * (entry.resolution // 14) ** 2 for entry in siblings})
            == 1
        )


@pytest.mark.parametrize("entry", [FLORENCE, PALIGEMMA], ids=lambda entry: str(entry.id))
def test_the_embedded_checkpoints_are_as_their_entries_say(entry: Any) -> None:
    folder = ROOT / entry.source
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        # not a mapping; the sinusoids of visual_temporal_embed are not parameters
        names = [name for name in tensors.keys() if "pos_idx_to_embed" not in name]  # noqa: SIM118
        sizes = [tensors.get_tensor(name).size for name in names]
    text_config = json.loads((folder / "config.json").read_text())["text_config"]
    size = json.loads((folder / "processor_config.json").read_text())["image_processor"]["size"]
    assert sum(sizes) == entry.parameters
    assert text_config["max_position_embeddings"] == entry.context_window
    assert size == {"height": entry.resolution, "width": entry.resolution}


def test_offered_tasks_are_the_familys_in_the_tables_order() -> None:
    assert FLORENCE.task_ids == tuple(TASKS)  # its entry adds questions to the family's row
    assert PALIGEMMA.task_ids == (
        "captioning",
        "open_vocabulary_detection",
        "phrase_grounding",
        "instance_segmentation",
        "ocr",
        "visual_question_answering",
    )
    assert "ocr" in PALIGEMMA.task_ids
    assert "object_detection" not in PALIGEMMA.task_ids
    assert "no such task" not in PALIGEMMA.task_ids


def test_an_entry_widens_and_narrows_its_familys_tasks() -> None:
    overrides = {"visual_question_answering": {"template": "<DocVQA>{question}"}, "ocr": None}
    entry = parse_entry(ROW | {"tasks": overrides})
    assert "visual_question_answering" in entry.task_ids
    assert entry.template("visual_question_answering") == "<DocVQA>{question}"
    assert "ocr" not in entry.task_ids
    assert entry.template("ocr") is None
    assert entry.template("captioning") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
        ({"id": "Some Model"}, "id of lower-case letters"),
        ({"id": 5}, "id of lower-case letters"),
        ({"family": "florence"}, "family must be one of florence2, paligemma, not 'florence'"),
        ({"family": ["florence2"]}, "family must be one of"),
        (
            {"precision": "float32"},
            "precision must be a mapping {device: {part: precision}} of devices",
        ),
        ({"precision": {"cpu": ROW["precision"]["cpu"]}}, "precision must be"),
        ({"precision": ROW["precision"] | {"tpu": {}}}, "precision must be"),
        ({"precision": ROW["precision"] | {"cuda": {"encoder": "float16"}}}, "precision must be"),
        (
            {"precision": ROW["precision"] | {"cpu": {"encoder": "float64", "decoder": "int8"}}},
            "precision must be",
        ),
        (
            {"precision": ROW["precision"] | {"cuda": {"encoder": ["float16"], "decoder": "int8"}}},
            "precision must be",
        ),
        ({"revision": "a branch"}, "revision must be null, or a commit, branch or tag"),
        ({"revision": 5}, "revision must be null, or a commit, branch or tag"),
        ({"release_date": "June 2024"}, "release_date must be YYYY-MM"),
        ({"parameters": "0.23B"}, "parameters must be a whole number above 0"),
        ({"parameters": True}, "parameters must be a whole number above 0"),
        ({"resolution": 0}, "resolution must be a whole number above 0"),
        ({"features": "polygons"}, "features must be a list of strings"),
        ({"features": [1]}, "features must be a list of strings"),
        ({"license": " "}, "license must be a non-blank string"),
        ({"license": None}, "license must be a non-blank string"),
        ({"one_name_per_prompt": "yes"}, "one_name_per_prompt must be true or false, not 'yes'"),
        ({"forced_names": 1}, "forced_names must be true or false, not 1"),
        ({"drops_articles": None}, "drops_articles must be true or false, not None"),
        ({"tasks": None}, "tasks must be a mapping"),
        (
            {"tasks": {"counting": None}},
            "tasks has the unknown task 'counting'; allowed are captioning",
        ),
        ({"tasks": {"ocr": {"template": "{question}"}}}, "tasks.ocr must be null"),
        (
            {"tasks": {"visual_question_answering": {"template": "what?"}}},
            "that contains {question} once",
        ),
        (
            {"tasks": {"visual_question_answering": {"prompt": "{question}"}}},
            "that contains {question} once",
        ),
        (
            {"tasks": {"captioning": {"template": "{language} {language}"}}},
            "captioning must be null, or {template: a string}, not",
        ),
        (
            {"tasks": {"instance_segmentation": {"template": "{phrase}", "labels": "no"}}},
            "must be null, or {template: a string that contains {phrase} once, labels: …}, not",
        ),
        ({"weights_sha256": "1" * 63}, "weights_sha256 must be 64 hexadecimal digits"),
        ({"mask_decoder": "vae.npz"}, "mask_decoder must be set for paligemma models"),
        ({"family": "paligemma"}, "mask_decoder must be set for paligemma models"),
    ],
)
def test_a_bad_entry_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        parse_entry(ROW | change)


ADAPTER: dict[str, Any] = {"id": "tuned", "adapter_of": "some-model", "source": "folder"}


def test_an_adapter_takes_the_other_keys_from_its_base(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    base = ROW | {"revision": "main", "tasks": {"ocr": None}}
    path.write_text(yaml.safe_dump({"models": [base, ADAPTER | {"license": "Apache-2.0"}]}))
    some, tuned = load_catalog(path).values()
    assert (some.adapter_of, tuned.adapter_of) == (None, "some-model")
    assert (tuned.source, tuned.revision, tuned.license) == ("folder", None, "Apache-2.0")
    assert (tuned.family, tuned.resolution, tuned.task_ids) == (
        some.family,
        some.resolution,
        some.task_ids,
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [ADAPTER, ROW],
            (
                "tuned: adapter_of must be a model before it that is not an adapter: ; not"
                " 'some-model'"
            ),
        ),
        ([ROW, ADAPTER | {"adapter_of": None}], "adapter_of must be a model before it"),
        (
            [ROW, ADAPTER, ADAPTER | {"id": "again", "adapter_of": "tuned"}],
            "not an adapter: some-model; not 'tuned'",
        ),
        (
            [ROW, ADAPTER | {"resolution": 224}],
            "tuned: an adapter shares resolution with its base some-model; remove",
        ),
        (
            [ROW, ADAPTER | {"aliases": ["a/b"]}],
            "tuned: an adapter shares aliases with its base some-model; remove",
        ),
        ([ROW, {"id": "tuned", "adapter_of": "some-model"}], r"tuned misses the keys \['source'\]"),
        ([ROW, ADAPTER | {"colour": "red"}], r"unknown keys \['colour'\]"),
        ([ROW, ADAPTER, ADAPTER], "more than one entry 'tuned'"),
    ],
)
def test_a_bad_adapter_is_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump({"models": rows}))
    with pytest.raises(CatalogError, match=message):
        load_catalog(path)


def test_an_adapter_outside_of_the_catalog_takes_the_other_keys_from_the_entry_of_its_base() -> (
    None
):
    base = parse_entry(ROW | {"revision": "main", "tasks": {"ocr": None}, "aliases": ["a/b"]})
    plain, own = (
        adapter_entry("tuned", "folder", row, base) for row in ({}, {"tasks": {}, "license": "X"})
    )
    assert (plain.id, plain.adapter_of, plain.source, plain.revision) == (
        "tuned",
        "some-model",
        "folder",
        None,
    )
    of_base: dict[str, Any] = {"id": base.id, "source": base.source, "revision": "main"}
    assert plain.aliases == ()
    assert replace(plain, adapter_of=None, aliases=("a/b",), **of_base) == base
    assert (own.license, "ocr" in own.task_ids, "ocr" in plain.task_ids) == ("X", True, False)


@pytest.mark.parametrize(
    ("model_id", "row", "message"),
    [
        ("Tuned", {}, "lower-case letters"),
        ("tuned", {"id": "other"}, "id is not allowed; it follows from the folder"),
        ("tuned", {"resolution": 224}, "an adapter shares resolution with its base some-model"),
        ("tuned", {"colour": "red"}, r"unknown keys \['colour'\]"),
        ("tuned", {"tasks": {"reading": None}}, "the unknown task 'reading'"),
    ],
)
def test_a_bad_adapter_outside_of_the_catalog_is_refused(
    model_id: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(CatalogError, match=message):
        adapter_entry(model_id, "folder", row, parse_entry(ROW))


@pytest.mark.parametrize("key", [key for key in ROW if key != "id"])
def test_every_key_is_needed(key: str) -> None:
    with pytest.raises(CatalogError, match=rf"some-model misses the keys \['{key}'\]"):
        parse_entry({name: value for name, value in ROW.items() if name != key})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", "cannot be read as YAML"),
        ("", "must contain a list under the single key models"),
        ("models: {}", "must contain a list under the single key models"),
        ("models: []\nmore: 1", "must contain a list under the single key models"),
        ("models: [5]", "must be a mapping"),
        (yaml.safe_dump({"models": [ROW, ROW]}), "more than one entry 'some-model'"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(text)
    with pytest.raises(CatalogError, match=message):
        load_catalog(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read"):
        load_catalog(tmp_path / "catalog.yaml")


@pytest.mark.parametrize(
    "aliases", ["a/b", ["a b"], ["a" * 201], [""], [f"a/{index}" for index in range(21)]]
)
def test_bad_aliases_are_refused(aliases: object) -> None:
    allowed = "aliases must be a list of at most 20 names of 1 to 200 characters"
    with pytest.raises(CatalogError, match=allowed):
        parse_entry(entry_row(FLORENCE) | {"aliases": aliases})


@pytest.mark.parametrize("alias", ["some-model", "owner/name", "an/alias"])
def test_an_alias_names_one_entry(tmp_path: Path, alias: str) -> None:
    path = tmp_path / "catalog.yaml"
    row = entry_row(FLORENCE) | {"id": "some-model", "source": "owner/name"}
    other = row | {"id": "other", "source": "owner/other", "aliases": [alias]}
    rows = [row | {"aliases": ["an/alias"]}, other]
    path.write_text(yaml.safe_dump({"models": rows}))
    with pytest.raises(CatalogError, match=f"other: aliases has '{alias}', a name of some-model"):
        load_catalog(path)


def test_adapters_of_microsofts_repositories_find_their_base() -> None:
    aliases = {alias: entry.source for entry in CATALOG.values() for alias in entry.aliases}
    for size in ("base", "large", "base-ft", "large-ft"):
        name = f"Florence-2-{size}"
        assert aliases[f"microsoft/{name}"] == f"florence-community/{name}"

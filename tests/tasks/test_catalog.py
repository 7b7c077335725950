import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open

from tasks.catalog import (
    CatalogEntry,
    CatalogError,
    adapter_entry,
    entry_row,
    load_catalog,
    model_id_of,
    parse_entry,
)
from tasks.table import TASKS
from tests.support.catalog import CATALOG, FLORENCE, PALIGEMMA, ROOT

ON_CPU = {"encoder": "int8", "decoder": "bfloat16"}
ON_CUDA = {"encoder": "float16", "decoder": "float32"}
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
    "precision": {"cpu": ON_CPU, "cuda": ON_CUDA},
    "features": ["polygons"],
}
ANY_ROW = ROW | {"id": "some-*", "source": "owner/some-*"}
ADAPTER: dict[str, Any] = {"id": "tuned", "adapter_of": "some-model", "source": "folder"}
QUESTIONS = "visual_question_answering"
MASKS = "instance_segmentation"


def loaded(tmp_path: Path, *rows: Any, names: tuple[str, ...] = ()) -> dict[str, CatalogEntry]:
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump({"models": list(rows)}))
    return load_catalog(path, names)


@pytest.mark.parametrize("side", [224, 448, 896])
def test_entry_for_many_repositories(side: int) -> None:
    path = ROOT / "models" / "catalog.yaml"
    name = f"paligemma-3b-ft-refcoco-seg-{side}"
    assert not any("*" in model_id for model_id in CATALOG)
    entry = load_catalog(path, [name, "paligemma-3b-ft-vqav2-300", "another"])[name]
    assert (entry.source, entry.revision) == (f"google/{name}", "bfloat16")
    base = CATALOG[f"paligemma-3b-pt-{side}"]
    assert (entry.parameters, entry.resolution) == (base.parameters, side)
    assert "paligemma-3b-ft-vqav2-300" not in load_catalog(path, ["paligemma-3b-ft-vqav2-300"])


def test_variants(tmp_path: Path) -> None:
    overrides = {
        MASKS: {"template": "{phrase}", "labels": False},
        QUESTIONS: {"template": "{question}", "separator": " | "},
    }
    row = ANY_ROW | {"variants": {"seg": overrides}}
    entry = loaded(tmp_path, row, names=("some-seg",))["some-seg"]
    assert (entry.source, entry.task_ids) == ("owner/some-seg", tuple(overrides))
    assert not entry.has_labels(MASKS)
    assert entry.tasks[QUESTIONS].separator == " | "
    assert parse_entry(entry_row(entry)) == entry
    adapter = ADAPTER | {"adapter_of": "some-seg"}
    assert list(loaded(tmp_path, row, adapter)) == ["some-seg", "tuned"]  # its base is needed
    with pytest.raises(CatalogError, match=r"some-other is not in the catalog: .* one of seg"):
        loaded(tmp_path, row, names=("some-other",))


def test_forced_names_are_not_inherited() -> None:
    base = parse_entry(ROW | {"forced_names": True})
    assert (base.forced_names, parse_entry(ROW).forced_names) == (True, False)
    assert not adapter_entry("tuned", "folder", {}, base).forced_names
    assert adapter_entry("tuned", "folder", {"forced_names": True}, base).forced_names


def test_model_id_of_repository() -> None:
    assert model_id_of("florence-2-base") == "florence-2-base"
    assert model_id_of("hf:Owner/My_Model.v2") == "owner--my-model.v2"


def test_resolutions_of_paligemma() -> None:
    """Checkpoints of one model differ by their position embeddings alone."""
    parameters: dict[str, set[int]] = {}
    for entry in CATALOG.values():
        if entry.family == "paligemma" and entry.organization != "Diptych":
            name, side = entry.source.rsplit("-", 2)[0], entry.resolution
            assert entry.source.endswith(f"-{side}")
            without_positions = entry.parameters - 1152 * (side // 14) ** 2
            parameters.setdefault(name, set()).add(without_positions)
    assert {len(counts) for counts in parameters.values()} == {1}


@pytest.mark.parametrize("entry", [FLORENCE, PALIGEMMA], ids=lambda entry: str(entry.id))
def test_embedded_checkpoints(entry: CatalogEntry) -> None:
    folder = ROOT / entry.source
    num_parameters = 0
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118  # not a mapping
            if "pos_idx_to_embed" not in name:  # the sinusoids of visual_temporal_embed
                num_parameters += tensors.get_tensor(name).size
    text_config = json.loads((folder / "config.json").read_text())["text_config"]
    size = json.loads((folder / "processor_config.json").read_text())["image_processor"]["size"]
    assert num_parameters == entry.parameters
    assert text_config["max_position_embeddings"] == entry.context_window
    assert size == {"height": entry.resolution, "width": entry.resolution}


def test_offered_tasks() -> None:
    assert FLORENCE.task_ids == tuple(TASKS)  # its entry adds questions to the family's row
    assert PALIGEMMA.task_ids == (
        "captioning",
        "open_vocabulary_detection",
        "phrase_grounding",
        MASKS,
        "ocr",
        QUESTIONS,
    )
    overrides = {QUESTIONS: {"template": "<DocVQA>{question}"}, "ocr": None}
    entry = parse_entry(ROW | {"tasks": overrides})
    assert set(entry.task_ids) == set(TASKS) - {"ocr"}
    assert entry.templates == {QUESTIONS: "<DocVQA>{question}"}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("colour", ["red"]),
        ("id", ["Some Model", 5, "-a", "a\n"]),
        ("family", ["florence", ["florence2"]]),
        (
            "precision",
            [
                "float32",
                {"cpu": ON_CPU},
                ROW["precision"] | {"tpu": {}},
                {"cpu": ON_CPU, "cuda": {"encoder": "float16"}},
                {"cpu": ON_CPU, "cuda": ON_CUDA | {"encoder": "f64"}},
            ],
        ),
        ("revision", ["a branch", 5]),
        ("release_date", ["June 2024"]),
        ("parameters", ["0.23B", True, 0]),
        ("context_window", [0]),
        ("resolution", [0, "5"]),
        ("features", ["polygons", [1], [""], ["a"] * 21]),
        ("license", [" ", None]),
        ("one_name_per_prompt", ["yes"]),
        ("forced_names", [1]),
        ("drops_articles", [None]),
        ("weights_sha256", ["1" * 63, "1" * 65]),
        ("aliases", ["a/b", ["a b"], ["a" * 201], [""], [f"a/{index}" for index in range(21)]]),
        ("tasks", [None, {"counting": None}, {"ocr": {"template": "{question}"}}]),
        ("tasks", [{QUESTIONS: {"template": "what?"}}, {QUESTIONS: {"prompt": "{question}"}}]),
        ("tasks", [{"captioning": {"template": "{language} {language}"}}]),
        ("tasks", [{MASKS: {"template": "{phrase}", "labels": "no"}}]),
        ("tasks", [{QUESTIONS: {"template": "{question}", "labels": False}}]),
        ("tasks", [{MASKS: {"template": "{phrase}", "separator": ","}}]),
        ("mask_decoder", ["vae.npz", " "]),
    ],
)
def test_bad_entry_is_refused(key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(CatalogError, match=rf"{key}.*not"):
            parse_entry(ROW | {key: value})


def test_limits_of_lists() -> None:
    parse_entry(ROW | {"aliases": [*("a" * length for length in range(1, 20)), "a" * 200]})


@pytest.mark.parametrize("key", ROW)
def test_missing_key_is_refused(key: str) -> None:
    with pytest.raises(CatalogError, match=f"{key}: Field required"):
        parse_entry({name: value for name, value in ROW.items() if name != key})


def test_adapter_inherits_from_its_base(tmp_path: Path) -> None:
    base = ROW | {"revision": "main", "tasks": {"ocr": None}, "weights_sha256": "1" * 64}
    some, tuned = loaded(tmp_path, base, ADAPTER | {"license": "X"}).values()
    assert (some.adapter_of, tuned.adapter_of) == (None, "some-model")
    assert (tuned.source, tuned.revision, tuned.weights_sha256) == ("folder", None, None)
    assert (tuned.license, tuned.resolution, tuned.task_ids) == ("X", 768, some.task_ids)


OTHER = ROW | {"id": "other", "source": "owner/other"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ANY_ROW | {"source": "a/b"}], r"some-\*: id and source must have one \* each"),
        ([ANY_ROW | {"id": "*-*"}], r"\*-\*: id and source must have one \* each"),
        ([ANY_ROW | {"parameters": 0}], "some-x: parameters must be greater than 0, not 0"),
        ([ANY_ROW | {"variants": ["x"]}], r"some-\*: variants must map names .* not \['x'\]"),
        ([ANY_ROW | {"variants": {"vqa": None}}], "variants must map names to mappings of task"),
        ([ANY_ROW | {"variants": {"vqa": {"ocr": {"template": ""}}}}], "some-vqa: .*must be null"),
        ([ADAPTER, ROW], "tuned: adapter_of must be a model before it .*: ; not 'some-model'"),
        ([ROW, ADAPTER | {"adapter_of": None}], "adapter_of must be a model before it"),
        (
            [ROW, ADAPTER, ADAPTER | {"id": "again", "adapter_of": "tuned"}],
            "not an adapter: some-model; not 'tuned'",
        ),
        ([ROW, ADAPTER | {"resolution": 224}], "an adapter shares resolution with its base some-"),
        ([ROW, ADAPTER | {"aliases": ["a/b"]}], "an adapter shares aliases with its base some-m"),
        ([ROW, {"id": "tuned", "adapter_of": "some-model"}], "tuned: source: Field required"),
        ([ROW, ADAPTER | {"colour": "red"}], "tuned: colour: Unexpected"),
        ([ROW, ADAPTER, ADAPTER], "more than one entry 'tuned'"),
        ([ROW | {"tasks": {QUESTIONS: {"template": "?"}}}], "must contain {question} once; it is"),
        ([ROW | {"tasks": {"counting": None}}], "'counting' is not a task; allowed are captioning"),
        ([ROW, ROW], "more than one entry 'some-model'"),
        ([5], "Input should be a dictionary"),
        ([ROW | {"family": "paligemma"}], "mask_decoder must be set for paligemma models"),
        ([ROW, OTHER | {"aliases": ["some-model"]}], "other: aliases has 'some-model', a name of"),
        ([ROW, OTHER | {"aliases": ["owner/name"]}], "other: aliases has 'owner/name', a name of"),
        (
            [ROW | {"aliases": ["an/alias"]}, OTHER | {"aliases": ["an/alias"]}],
            "other: aliases has 'an/alias', a name of some-model",
        ),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        loaded(tmp_path, *rows)


@pytest.mark.parametrize("text", ["models: [", "", "models: {}", "models: []\nmore: 1"])
def test_bad_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "catalog.yaml"
    with pytest.raises(CatalogError, match="cannot be read"):
        load_catalog(path)
    path.write_text(text)
    problem = "cannot be read as YAML|must contain a list under the single key models"
    with pytest.raises(CatalogError, match=problem):
        load_catalog(path)


def test_microsofts_ids_are_aliases() -> None:
    aliases: dict[str, str] = {}
    for entry in CATALOG.values():
        aliases |= dict.fromkeys(entry.aliases, entry.source)
    for size in ("base", "large", "base-ft", "large-ft"):
        name = f"Florence-2-{size}"
        assert aliases[f"microsoft/{name}"] == f"florence-community/{name}"

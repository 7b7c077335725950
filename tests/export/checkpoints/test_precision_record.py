import json
from dataclasses import replace
from pathlib import Path

import pytest

from export.checkpoints.precision_record import (
    PrecisionRecord,
    PrecisionRun,
    checkpoint_key,
    read_record,
    record_file,
    write_record,
)
from export.checkpoints.sources import resolve_source
from export.errors import SourceError
from laboratory.evaluation.precision import pairs
from tasks.catalog import load_catalog, parse_entry
from tests.support.catalog import CATALOG, FLORENCE, ROOT
from tests.support.fake_service import served
from wire.artifacts.manifest import RUNNABLE, Precision, vision_encoder_file

CHECKPOINT = "a" * 64
INT8 = replace(
    FLORENCE,
    precision={
        "cpu": {"encoder": "int8", "decoder": "int8"},
        "cuda": {"encoder": "float16", "decoder": "bfloat16"},
    },
)


def run(encoder: Precision, decoder: Precision, **accuracy: float) -> PrecisionRun:
    return PrecisionRun("cpu", encoder, decoder, accuracy)


def record(*runs: PrecisionRun) -> PrecisionRecord:
    return PrecisionRecord(CHECKPOINT, 500, runs)


def test_a_default_that_loses_more_than_a_point_of_any_task_is_refused() -> None:
    found = record(
        run("float32", "float32", ocr=0.8, vqa=0.9), run("int8", "int8", ocr=0.789, vqa=0.91)
    )
    message = (
        "encoder int8, decoder int8 loses 1.1 points of ocr; at most 1 is allowed: choose another"
        " precision"
    )
    with pytest.raises(SourceError, match=message):
        found.check(INT8)


def test_a_default_that_loses_a_point_or_less_is_accepted() -> None:
    record(
        run("float32", "float32", ocr=0.8, vqa=0.9), run("int8", "int8", ocr=0.7901, vqa=0.95)
    ).check(INT8)


def test_default_without_a_run_is_accepted() -> None:
    record(run("float32", "float32", ocr=0.8), run("int8", "float32", ocr=0.1)).check(INT8)


def test_record_without_a_float32_run_is_refused() -> None:
    with pytest.raises(SourceError, match="no float32 run on cpu to compare with"):
        record(run("int8", "int8", ocr=0.8)).check(INT8)


def test_record_round_trips(tmp_path: Path) -> None:
    written = record(run("float32", "float32", ocr=0.8), run("int8", "int8", ocr=0.7))
    path = record_file(tmp_path, "some-model")
    path.parent.parent.mkdir()
    write_record(path, written)
    assert read_record(path, CHECKPOINT) == written


def test_record_of_another_checkpoint_is_ignored(tmp_path: Path) -> None:
    write_record(tmp_path / "precision.json", record(run("float32", "float32", ocr=0.8)))
    assert read_record(tmp_path / "precision.json", "b" * 64) is None
    assert read_record(tmp_path / "none.json", CHECKPOINT) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"runs": [{"device": "cpu"}]}', json.dumps({"runs": [], "x": 1})]
)
def test_invalid_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "precision.json").write_text(text)
    with pytest.raises(SourceError, match="is not a valid precision record"):
        read_record(tmp_path / "precision.json", CHECKPOINT)


def test_changed_weight_changes_the_checkpoint_key(tmp_path: Path) -> None:
    for name in ("config.json", "processor_config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((ROOT / FLORENCE.source / name).read_bytes())
    key = checkpoint_key(resolve_source(str(tmp_path), None, "florence2", ROOT))
    (tmp_path / "README.md").write_text("not read by an export")
    assert checkpoint_key(resolve_source(str(tmp_path), None, "florence2", ROOT)) == key
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert checkpoint_key(resolve_source(str(tmp_path), None, "florence2", ROOT)) != key


def test_all_pairs_of_precisions_that_the_device_supports_are_measured() -> None:
    manifest = replace(served(FLORENCE).manifest, files={vision_encoder_file("float32"): "a" * 64})
    with_int8 = replace(manifest, files={**manifest.files, vision_encoder_file("int8"): "b" * 64})
    decoders = ("float32", "int8", "bfloat16")
    only_float32 = tuple(("float32", decoder) for decoder in decoders)
    assert pairs(with_int8, "cpu") == (*only_float32, *(("int8", decoder) for decoder in decoders))
    assert pairs(manifest, "cuda") == (
        ("float32", "float32"),
        ("float32", "bfloat16"),
        ("float32", "float16"),
    )


def test_committed_records_cover_500_scenes_and_the_defaults_of_the_catalog() -> None:
    for path in sorted((ROOT / "models").glob("*/precision.json")):
        entry = load_catalog(ROOT / "models" / "catalog.yaml")[path.parent.name]
        found = read_record(
            path, checkpoint_key(resolve_source(entry.source, None, entry.family, ROOT))
        )
        assert found is not None, (
            f"{path} is of another checkpoint; "
            f"run: python -m laboratory.evaluation.precision {entry.id}"
        )
        assert found.num_scenes >= 500
        assert (
            found.find("cpu", entry.precision["cpu"]["encoder"], entry.precision["cpu"]["decoder"])
            is not None
        )
        found.check(entry)


def test_catalog_accepts_exactly_the_precisions_of_the_runners() -> None:
    entry = CATALOG["florence-2-base"]
    row = {
        name: getattr(entry, name)
        for name in ("id", "family", "source", "revision", "organization", "category")
    }
    row |= {
        name: getattr(entry, name) for name in ("modality", "license", "release_date", "parameters")
    }
    row |= {name: getattr(entry, name) for name in ("context_window", "resolution")} | {
        "features": ["one"]
    }
    for device, parts in RUNNABLE.items():
        for part, precisions in parts.items():
            for precision in ("float32", "int8", "bfloat16", "float16"):
                named = dict(entry.precision) | {
                    device: dict(entry.precision[device]) | {part: precision}
                }
                if precision in precisions:
                    assert (
                        parse_entry(row | {"precision": named}).precision[device][part] == precision
                    )
                else:
                    with pytest.raises(ValueError, match="precision must be"):
                        parse_entry(row | {"precision": named})

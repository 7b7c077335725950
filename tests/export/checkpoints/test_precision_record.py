import json
from dataclasses import replace
from pathlib import Path

import pytest

from export.checkpoints.errors import PrecisionError
from export.checkpoints.precision_record import (
    PrecisionRecord,
    PrecisionRun,
    checkpoint_key,
    read_record,
    record_file,
    write_record,
)
from export.checkpoints.sources import resolve_source
from export.precision import pairs
from runners.artifacts import Precision, vision_encoder_file
from runners.precision import RUNNABLE
from tasks.catalog import load_catalog, parse_entry
from tests.support.catalog import CATALOG, FLORENCE, ROOT
from tests.support.fake_service import served

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
    found = record(run("float32", "float32", ocr=0.8, vqa=0.9), run("int8", "int8", ocr=0.789, vqa=0.91))
    message = "encoder int8, decoder int8 loses 1.1 points of ocr; at most 1 is allowed: choose another precision"
    with pytest.raises(PrecisionError, match=message):
        found.check(INT8)


def test_a_default_that_loses_a_point_or_less_holds() -> None:
    record(run("float32", "float32", ocr=0.8, vqa=0.9), run("int8", "int8", ocr=0.7901, vqa=0.95)).check(INT8)


def test_what_was_not_measured_is_not_refused_as_it_must_be_exported_to_be_measured() -> None:
    record(run("float32", "float32", ocr=0.8), run("int8", "float32", ocr=0.1)).check(INT8)


def test_a_loss_without_the_float32_run_is_no_record() -> None:
    with pytest.raises(PrecisionError, match="no float32 run on cpu to compare with"):
        record(run("int8", "int8", ocr=0.8)).check(INT8)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(run("float32", "float32", ocr=0.8), run("int8", "int8", ocr=0.7))
    path = record_file(tmp_path, "some-model")
    path.parent.parent.mkdir()
    write_record(path, written)
    assert read_record(path, CHECKPOINT) == written


def test_a_record_of_other_weights_says_nothing(tmp_path: Path) -> None:
    write_record(tmp_path / "precision.json", record(run("float32", "float32", ocr=0.8)))
    assert read_record(tmp_path / "precision.json", "b" * 64) is None
    assert read_record(tmp_path / "none.json", CHECKPOINT) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"runs": [{"device": "cpu"}]}', json.dumps({"runs": [], "x": 1})])
def test_a_broken_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "precision.json").write_text(text)
    with pytest.raises(PrecisionError, match="is not a valid precision record"):
        read_record(tmp_path / "precision.json", CHECKPOINT)


def test_another_weight_is_another_checkpoint(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((ROOT / FLORENCE.source / name).read_bytes())
    key = checkpoint_key(resolve_source(str(tmp_path), None, "florence2", ROOT))
    (tmp_path / "README.md").write_text("not read by an export")
    assert checkpoint_key(resolve_source(str(tmp_path), None, "florence2", ROOT)) == key
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert checkpoint_key(resolve_source(str(tmp_path), None, "florence2", ROOT)) != key


def test_every_precision_of_one_part_is_measured_with_every_one_of_the_other_that_the_device_runs() -> None:
    manifest = replace(served(FLORENCE).manifest, files={vision_encoder_file("float32"): "a" * 64})
    with_int8 = replace(manifest, files={**manifest.files, vision_encoder_file("int8"): "b" * 64})
    decoders = ("float32", "int8", "bfloat16")
    only_float32 = tuple(("float32", decoder) for decoder in decoders)
    assert pairs(with_int8, "cpu") == (*only_float32, *(("int8", decoder) for decoder in decoders))
    assert pairs(manifest, "cuda") == (("float32", "float32"), ("float32", "bfloat16"), ("float32", "float16"))


def test_the_committed_records_are_of_500_scenes_and_hold_what_the_catalog_names() -> None:
    for path in sorted((ROOT / "models").glob("*/precision.json")):
        entry = load_catalog(ROOT / "models" / "catalog.yaml")[path.parent.name]
        found = read_record(path, checkpoint_key(resolve_source(entry.source, None, entry.family, ROOT)))
        assert found is not None, f"{path} is of other weights: python -m export.precision {entry.id}"
        assert found.num_scenes >= 500
        assert found.find("cpu", entry.precision["cpu"]["encoder"], entry.precision["cpu"]["decoder"]) is not None
        found.check(entry)


def test_the_catalog_may_name_exactly_what_the_runners_run() -> None:
    entry = CATALOG["florence-2-base"]
    row = {name: getattr(entry, name) for name in ("id", "family", "source", "revision", "organization", "category")}
    row |= {name: getattr(entry, name) for name in ("modality", "license", "release_date", "parameters")}
    row |= {name: getattr(entry, name) for name in ("context_window", "resolution")} | {"features": ["one"]}
    for device, parts in RUNNABLE.items():
        for part, precisions in parts.items():
            for precision in ("float32", "int8", "bfloat16", "float16"):
                named = dict(entry.precision) | {device: dict(entry.precision[device]) | {part: precision}}
                if precision in precisions:
                    assert parse_entry(row | {"precision": named}).precision[device][part] == precision
                else:
                    with pytest.raises(ValueError, match="precision must be"):
                        parse_entry(row | {"precision": named})

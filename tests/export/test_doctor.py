import json
import os
import shutil
from pathlib import Path

import pytest

from export import doctor
from tests.support import forked_python
from tests.support.export_cli import EMBEDDED, ROOT, ModelStore


def test_sound_host_has_one_line_for_each_check_and_model(exported: ModelStore) -> None:
    run = exported.forked("-m", "export", "doctor")
    assert run.returncode == 0, run.stdout
    checks = [line.split()[1] for line in run.stdout.splitlines()]
    models = [f"{model_id}:" for model_id in EMBEDDED]
    assert checks == ["devices:", "disk:", *models]
    assert run.stderr == ""


def test_the_store_of_make_serve_is_the_default() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "BENTOML_HOME"}
    run = forked_python.run(("-m", "export", "doctor", *EMBEDDED), environment)
    assert f" GB are free in {ROOT / '.bentoml'}\n" in run.stdout


def test_damaged_file_is_a_failure_that_names_it(exported: ModelStore, tmp_path: Path) -> None:
    store = ModelStore(Path(shutil.copytree(exported.home, tmp_path / "bentoml")))
    (store.newest("paligemma-mini") / "tokenizer.json").write_text("{}", encoding="utf-8")
    run = store.forked("-m", "export", "doctor")
    assert run.returncode == 1
    (failure,) = [line for line in run.stdout.splitlines() if line.startswith("failure")]
    assert "paligemma-mini: " in failure
    assert "tokenizer.json has sha256" in failure
    assert failure.endswith("export it again: python -m export paligemma-mini")


def test_served_model_that_is_not_exported_is_a_failure(exported: ModelStore) -> None:
    run = exported.forked(
        "-m", "export", "doctor", DIPTYCH_MODELS="florence-2-mini,florence-2-base"
    )
    assert run.returncode == 1
    assert "ok        florence-2-mini: " in run.stdout
    assert "failure   florence-2-base: no artifacts of florence-2-base" in run.stdout


def test_engine_has_no_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"id": "far", "family": "openai", "url": "http://a/v1", "model": "m"}
    (tmp_path / "catalog.json").write_text(json.dumps({"models": [{**row, "dialect": "gemma"}]}))
    monkeypatch.setattr(doctor, "CATALOG_FILE", tmp_path / "catalog.json")
    assert str(doctor.artifacts("far")) == "ok        far: an engine serves it"

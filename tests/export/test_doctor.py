import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.doctor import artifacts, disk, memory
from tests.support import forked_python
from tests.support.export_cli import EMBEDDED, ROOT, ModelStore
from wire.artifacts.manifest import read_manifest


def test_sound_host_has_one_line_for_each_check_and_model(exported: ModelStore) -> None:
    run = exported.forked("-m", "export", "doctor")
    assert run.returncode == 0, run.stdout
    checks = [line.split()[1] for line in run.stdout.splitlines()]
    assert checks == [
        "versions:",
        "devices:",
        "memory:",
        "disk:",
        *(f"{model_id}:" for model_id in EMBEDDED),
    ]
    assert run.stderr == ""


def test_the_store_of_make_serve_is_the_default() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "BENTOML_HOME"}
    run = forked_python.run(("-m", "export", "doctor", *EMBEDDED), environment)
    assert f" GB are free in {ROOT / '.bentoml'}\n" in run.stdout


def test_a_model_with_published_answers_is_offered_the_comparison(
    exported: ModelStore, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "bentoml")
    store.add_newest("florence-2-mini", exported)
    named = store.home / "models" / "florence-2-base"
    shutil.move(named.with_name("florence-2-mini"), named)
    record = store.newest("florence-2-base") / "model.yaml"
    text = record.read_text(encoding="utf-8")
    record.write_text(text.replace("florence-2-mini", "florence-2-base"), encoding="utf-8")
    run = store.python("-m", "export", "doctor")
    assert run.stdout.splitlines()[-1] == (
        "ok        florence-2-base: 6 published answers to compare with: python -m export golden"
        " florence-2-base"
    )


def test_damaged_file_is_a_failure_that_names_it(exported: ModelStore, tmp_path: Path) -> None:
    store = ModelStore(Path(shutil.copytree(exported.home, tmp_path / "bentoml")))
    (store.newest("paligemma-mini") / "tokenizer.json").write_text("{}", encoding="utf-8")
    run = store.forked("-m", "export", "doctor")
    assert run.returncode == 1
    (failure,) = [line for line in run.stdout.splitlines() if line.startswith("failure")]
    assert "paligemma-mini: " in failure
    assert "tokenizer.json has sha256" in failure
    assert failure.endswith("export it again: python -m export paligemma-mini")


def test_the_torch_of_a_gpu_may_be_another_than_that_of_the_export(
    exported: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported.newest("florence-2-mini")
    manifest = read_manifest(folder)
    other = replace(manifest, versions={**manifest.versions, "torch": "2.0"})
    found = artifacts("florence-2-mini", folder, other)
    assert (found.verdict, "exported with torch 2.0" in found.text) == ("warning", True)
    installed = tmp_path / "onnxruntime_gpu-1.31.1.dist-info" / "METADATA"
    installed.parent.mkdir()
    installed.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert artifacts("florence-2-mini", folder, other).verdict == "ok"


def test_served_model_that_is_not_exported_is_a_failure(exported: ModelStore) -> None:
    run = exported.forked(
        "-m", "export", "doctor", DIPTYCH_MODELS="florence-2-mini,florence-2-base"
    )
    assert run.returncode == 1
    assert "ok        florence-2-mini: " in run.stdout
    assert "failure   florence-2-base: no artifacts of florence-2-base" in run.stdout


@pytest.mark.parametrize(
    ("available", "verdict"), [(3.1e9, "ok"), (2.9e9, "failure"), (None, "warning")]
)
def test_weights_must_fit_the_available_memory(available: float | None, verdict: str) -> None:
    assert memory([1e9, 2e9], available).verdict == verdict


@pytest.mark.parametrize(("free", "verdict"), [(1.1e9, "ok"), (0.9e9, "warning")])
def test_little_disk_is_a_warning(free: float, verdict: str) -> None:
    finding = disk(Path("/store"), free)
    assert (finding.verdict, "/store" in finding.text) == (verdict, True)

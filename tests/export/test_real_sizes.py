"""Released sizes with random weights, all layers of the vision tower, exported by the command.

docs/models.md has their time and memory; a host without the memory refuses with both numbers.
"""

from pathlib import Path

import pytest

from tests.support.export_cli import ModelStore
from tests.support.real_sizes import export_full_size, write_full_size
from wire.artifacts.manifest import read_manifest, verify_files

pytestmark = pytest.mark.long
FULL_DEPTH = ("florence-2-base", "florence-2-large")
# One layer of Gemma: at full depth 224 px take half an hour (docs/models.md).
CUT = ("paligemma-3b-mix-224", "paligemma-3b-mix-448", "paligemma-3b-pt-896")


@pytest.mark.parametrize("name", FULL_DEPTH)
def test_florence_exports_from_microsofts_form_and_shows_progress(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_full_size(name, checkpoint)
    cost = export_full_size(name, checkpoint, tmp_path / "bentoml")
    with capsys.disabled():
        print(f"\n{name}: {cost}", end=" ")
    steps = [line for line in cost.printed if line.startswith(f"{name}: ")]
    assert len(steps) >= 10
    assert steps[0].startswith(f"{name}: the export needs ")
    assert steps[-1].endswith(f"to compare with: python -m export golden {name}")
    folder = ModelStore(tmp_path / "bentoml").newest(name)
    verify_files(folder, read_manifest(folder))


@pytest.mark.parametrize("name", CUT)
def test_paligemma_exports_with_all_layers_of_its_vision_tower(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_full_size(name, checkpoint, decoder_layers=1)
    cost = export_full_size(name, checkpoint, tmp_path / "bentoml", is_cut=True)
    with capsys.disabled():
        print(f"\n{name}: {cost}", end=" ")
    folder = ModelStore(tmp_path / "bentoml").newest(name)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert manifest.num_image_tokens == (int(name.rpartition("-")[2]) // 14) ** 2

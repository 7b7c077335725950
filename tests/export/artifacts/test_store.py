"""The model store of the export."""

from pathlib import Path

from tests.support.export_cli import ModelStore, small_disk


def test_full_disk_of_the_store_leaves_nothing_on_either_disk(tmp_path: Path) -> None:
    code = """
import os
from pathlib import Path
from export.artifacts.store import new_version
from export.errors import ExportError
try:
    with new_version("some-model") as folder:
        (folder / "weights").write_bytes(bytes(3_000_000))
except ExportError as error:
    print(error)
stored = Path(os.environ["BENTOML_HOME"], "models").rglob("*")
print([str(path) for path in stored if path.is_file()])
"""
    (tmp_path / "temporary").mkdir()
    store = ModelStore(tmp_path / "small", small_disk(tmp_path / "small", 2))
    run = store.python("-c", code, TMPDIR=str(tmp_path / "temporary"))
    message, stored = run.stdout.splitlines()
    assert message.startswith("no space left for the artifacts of some-model")
    assert f"stored in {tmp_path / 'small'} (BENTOML_HOME)" in message
    assert stored == "[]"
    assert list((tmp_path / "temporary").iterdir()) == []

"""Builds the Bento that a container image is made of: service, runners, wire, imaging,
tasks and artifacts, as one folder.

python -m export.bento build/bento                      with the embedded models, as in
                                                        bentofile.yaml
python -m export.bento build/bento florence-2-base …    with these models, which must be exported
                                                        already
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import bentoml
import yaml

from tasks.catalog import model_id_of
from wire.artifacts.manifest import ArtifactError
from wire.artifacts.model_store import artifact_folder

_ROOT = Path(__file__).parents[1]


def write_bento(folder: Path, models: Sequence[str]) -> None:
    """Build a Bento of `models` (empty: bentofile.yaml's); raise `ArtifactError`."""
    options = yaml.safe_load((_ROOT / "bentofile.yaml").read_text(encoding="utf-8"))
    if models:
        options["models"] = [f"{model_id_of(model)}:latest" for model in models]
        os.environ["DIPTYCH_MODELS"] = ",".join(models)  # the services that the Bento describes
    for tag in options["models"]:
        artifact_folder(tag.removesuffix(":latest"))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as bentofile:
        yaml.safe_dump(options, bentofile)
        bentofile.flush()
        bento = bentoml.bentos.build_bentofile(bentofile.name, build_ctx=str(_ROOT))
    shutil.rmtree(folder, ignore_errors=True)
    try:
        bento.export(str(folder.resolve()), "folder")  # BentoML resolves a relative path against /
    finally:
        bentoml.bentos.delete(bento.tag)  # otherwise every build would leave one in the store


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.bento", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parsed = parser.parse_args()
    try:
        write_bento(parsed.folder, parsed.models)
    except ArtifactError as error:
        sys.exit(f"python -m export.bento: {error}")


if __name__ == "__main__":
    main()

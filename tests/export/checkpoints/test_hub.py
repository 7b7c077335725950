"""The export from a hub, as a user runs it: `python -m export` against a hub on this machine."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.checks.reference import Reference
from tasks.catalog import parse_entry
from tests.support.export_cli import MODELS, ModelStore
from tests.support.hub import COMMIT, REPOSITORY, Failure, LocalHub, running_hub
from tests.support.lora import write_adapter
from tests.support.microsoft_form import update_json
from wire.artifacts.manifest import read_manifest, sha256_of, verify_files

CHECKPOINT = MODELS / "florence-2-mini"
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the discard port: nothing listens
# Few probes and no photographs: the entry is under test.
EXPORT = f"""
from dataclasses import replace
from export.artifacts.store import new_version
from export.checkpoints.jobs import ExportOptions, find_entry, plan_job
from export.checks.parity import ProbePlan
from export.pipeline import make_artifacts
entry = find_entry("hf:{REPOSITORY}")
job = replace(plan_job(entry, ExportOptions()), photographs=())
with new_version(entry.id) as folder:
    make_artifacts(job, folder, probe_plan=ProbePlan(2, 4))
"""
SERVED = """
import sys
from service.settings import read_settings
from service.inference.served_models import load_served_models
for model in load_served_models(read_settings({"DIPTYCH_MODELS": sys.argv[1]})).values():
    print(model.id, model.entry.parameters)
"""


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with running_hub(CHECKPOINT) as hub:
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "bentoml")


def assert_refused(run: subprocess.CompletedProcess[str], store: ModelStore, *texts: str) -> None:
    """Require one line of error on stderr with every text, and nothing in the store."""
    assert run.returncode == 1
    *progress, line = run.stderr.splitlines()
    assert all("fetching the files" in text for text in progress)
    assert line.startswith("python -m export: ")
    for text in texts:
        assert text in line
    assert not list(store.home.glob("models/*/*.*"))


def export(
    store: ModelStore, hub: LocalHub, cache: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return store.export(
        "florence-2-mini", "--source", REPOSITORY, **hub.environment(cache) | environment
    )


def output_of(store: ModelStore, code: str, *arguments: str, **environment: str) -> str:
    run = store.python("-c", code, *arguments, **environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def plan(store: ModelStore, hub: LocalHub, cache: Path, *revision: str, **environment: str) -> str:
    """Fetch the checkpoint as an export does, without making the artifacts; return the commit."""
    code = (
        "import sys; from pathlib import Path; from export.checkpoints.sources import"
        f" resolve_source; print(resolve_source({REPOSITORY!r}, *(sys.argv[1:] or [None]),"
        " 'florence2', Path()).revision)"
    )
    return output_of(store, code, *revision, **hub.environment(cache) | environment).strip()


def test_nothing_executable_is_fetched(hub: LocalHub, store: ModelStore, tmp_path: Path) -> None:
    assert plan(store, hub, tmp_path / "cache", "bfloat16") == COMMIT
    revision = f"/api/models/{REPOSITORY}/revision/bfloat16"
    assert any(path.startswith(revision) for path in hub.requested)
    assert any(path.endswith("/model.safetensors") for path in hub.requested)
    assert not any(path.endswith((".bin", ".py")) for path in hub.requested)


@pytest.mark.long
def test_a_repository_stores_its_entry(hub: LocalHub, store: ModelStore, tmp_path: Path) -> None:
    output_of(store, EXPORT, **hub.environment(tmp_path / "cache"))
    folder = store.newest("tests--florence-2-mini")
    entry = parse_entry(json.loads((folder / "entry.json").read_text(encoding="utf-8")))
    assert (entry.source, entry.parameters, entry.resolution) == (REPOSITORY, 2610240, 192)
    verify_files(folder, read_manifest(folder))
    served = output_of(store, SERVED, f"hf:{REPOSITORY}")
    assert served.split() == ["tests--florence-2-mini", "2610240"]


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        ("gated", "GatedRepoError: 403 Client Error"),
        ("no revision", f"{REPOSITORY} at its newest commit: RevisionNotFoundError"),
        ("broken xet", "RuntimeError"),
        (None, "LocalEntryNotFoundError"),
    ],
)
def test_a_failure_of_the_hub_is_one_line(
    failure: Failure | None, text: str, store: ModelStore, tmp_path: Path
) -> None:
    environment = {} if failure else UNREACHABLE
    with running_hub(CHECKPOINT, failure) as hub:
        assert_refused(export(store, hub, tmp_path / "cache", **environment), store, text)
        assert bool(hub.requested) == (failure is not None)


def test_a_cached_checkpoint_needs_no_network(
    hub: LocalHub, store: ModelStore, tmp_path: Path
) -> None:
    for revision in ((), ("bfloat16",)):
        assert plan(store, hub, tmp_path / "cache", *revision) == COMMIT
    hub.requested.clear()
    offline = {"HF_HUB_OFFLINE": "1"}
    for revision, environment in (
        ((), UNREACHABLE),
        (("bfloat16",), UNREACHABLE),
        ((), offline),
        ((COMMIT,), offline),
    ):
        assert plan(store, hub, tmp_path / "cache", *revision, **environment) == COMMIT
    assert hub.requested == []


def test_a_file_with_another_hash_is_refused(
    hub: LocalHub, store: ModelStore, tmp_path: Path
) -> None:
    actual = sha256_of(CHECKPOINT / "config.json")
    code = f"""
from pathlib import Path
from export.errors import SourceError
from export.checkpoints.sources import Source, resolve_file
for expected in ({actual!r}, {"0" * 64!r}):
    try:
        name = f"hf://{REPOSITORY}/config.json#sha256={{expected}}"
        print(resolve_file(name, Source("any", None, Path())).name)
    except SourceError as error:
        print(error)
"""
    name, refusal = output_of(store, code, **hub.environment(tmp_path / "cache")).splitlines()
    assert name == "config.json"
    assert f"config.json has sha256 {actual}; the catalog expects 000" in refusal


def test_another_family_is_refused_before_its_weights(store: ModelStore, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    update_json(folder / "config.json", model_type="bart")
    with running_hub(folder) as hub:
        run = export(store, hub, tmp_path / "cache")
        assert_refused(run, store, "is a checkpoint of bart; the catalog expects florence2")
        assert not any(path.endswith(".safetensors") for path in hub.requested)


def test_pickled_weights_are_fetched_last(store: ModelStore, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    (folder / "model.safetensors").rename(folder / "model_ema.safetensors")
    with running_hub(folder) as hub:
        assert plan(store, hub, tmp_path / "cache") == COMMIT
        assert any(path.endswith("/pytorch_model.bin") for path in hub.requested)
        assert not any(path.endswith((".py", "_ema.safetensors")) for path in hub.requested)


def test_an_adapter_needs_no_entry(exported: ModelStore, tmp_path: Path) -> None:
    adapter = write_adapter(Reference.load(CHECKPOINT).model, tmp_path / "adapter", 0)
    update_json(adapter / "adapter_config.json", base_model_name_or_path="florence-2-mini")
    store = ModelStore(Path(shutil.copytree(exported.home, tmp_path / "bentoml", symlinks=True)))
    with running_hub(adapter) as hub:
        environment = hub.environment(tmp_path / "cache")
        run = store.export(f"hf:{REPOSITORY}", **environment)
        assert "tests--florence-2-mini: an adapter of" in run.stdout, run.stderr
        run = store.export(f"hf:{REPOSITORY}", "--if-changed", **environment)
        assert run.stdout == "tests--florence-2-mini: up to date\n", run.stderr
    served = output_of(store, SERVED, f"florence-2-mini,hf:{REPOSITORY}")
    assert served.splitlines()[1:] == ["tests--florence-2-mini 2610240"]

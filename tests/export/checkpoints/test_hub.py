"""The export from a hub, as a user runs it: `python -m export` against a hub on this machine."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from export.checks.reference import Reference
from tasks.catalog import parse_entry
from tests.support.export_cli import MODELS, ModelStore, small_disk
from tests.support.hub import COMMIT, REPOSITORY, Failure, LocalHub, running_hub
from tests.support.lora import write_adapter
from tests.support.microsoft_form import update_json
from wire.artifacts.manifest import read_manifest, sha256_of, verify_files

CHECKPOINT = MODELS / "florence-2-mini"
UNREACHABLE = "http://127.0.0.1:9"  # the discard port: nothing listens


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
    assert all("fetching the files" in each for each in progress)
    assert line.startswith("python -m export: ")
    for text in texts:
        assert text in line
    assert not (store.home / "models").exists() or list((store.home / "models").rglob("*.*")) == []


def export(
    store: ModelStore, hub: LocalHub, cache: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return store.export(
        "florence-2-mini", "--source", REPOSITORY, **hub.environment(cache) | environment
    )


def plan(store: ModelStore, hub: LocalHub, cache: Path, *revision: str, **environment: str) -> str:
    """Fetch the checkpoint as an export does, without making the artifacts; return the commit."""
    code = (
        "import sys; from pathlib import Path; from export.checkpoints.sources import"
        f" resolve_source; print(resolve_source({REPOSITORY!r}, *(sys.argv[1:] or [None]),"
        " 'florence2', Path()).revision)"
    )
    run = store.python("-c", code, *revision, **hub.environment(cache) | environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_nothing_executable_is_fetched(hub: LocalHub, store: ModelStore, tmp_path: Path) -> None:
    code = (
        "from export.checkpoints.jobs import ExportOptions, find_entry, plan_job; source ="
        f" plan_job(find_entry('florence-2-mini'), ExportOptions({REPOSITORY!r},"
        " 'bfloat16')).source; print(source.name, source.revision, sorted(each.name for each in"
        " source.folder.iterdir()))"
    )
    run = store.python("-c", code, **hub.environment(tmp_path / "cache"))
    assert run.returncode == 0, run.stderr
    name, commit, files = run.stdout.split(maxsplit=2)
    assert (name, commit) == (REPOSITORY, COMMIT)
    assert "'model.safetensors'" in files
    assert any(
        path.startswith(f"/api/models/{REPOSITORY}/revision/bfloat16") for path in hub.requested
    )
    assert not any(path.endswith((".bin", ".py")) for path in hub.requested)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "it is gated and there is no token; accept its terms at http://127.0.0.1:"),
        ("hf_any", "the account of the token has not accepted its terms, or the token may not"),
    ],
)
def test_gated_repositories_name_the_remedy(
    token: str, message: str, store: ModelStore, tmp_path: Path
) -> None:
    with running_hub(CHECKPOINT, "gated") as hub:
        run = export(store, hub, tmp_path / "cache", HF_TOKEN=token)
        assert_refused(run, store, message, f"/{REPOSITORY}")


@pytest.mark.long
def test_a_repository_stores_its_entry(hub: LocalHub, store: ModelStore, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "cache")
    run = store.python("-c", _EXPORT, **environment)
    assert run.returncode == 0, run.stderr
    folder = store.newest("tests--florence-2-mini")
    entry = parse_entry(json.loads((folder / "entry.json").read_text(encoding="utf-8")))
    assert (entry.source, entry.parameters, entry.resolution) == (REPOSITORY, 2610240, 192)
    verify_files(folder, read_manifest(folder))
    run = store.python("-c", _SERVED, BENTOML_HOME=str(store.home))
    assert run.stdout.split() == ["tests--florence-2-mini", "2610240"], run.stderr


# Few probes and no photographs: the entry is under test.
_EXPORT = f"""
from dataclasses import replace
from export.artifacts.store import new_version
from export.checkpoints.jobs import ExportOptions, find_entry, plan_job
from export.checks.parity import ProbePlan
from export.pipeline import make_artifacts
from export.progress import NUM_STEPS, Progress
entry = find_entry("hf:{REPOSITORY}")
job = replace(plan_job(entry, ExportOptions()), photographs=())
with new_version(entry.id) as folder, Progress(entry.id, NUM_STEPS) as progress:
    make_artifacts(job, folder, progress, probe_plan=ProbePlan(2, 4))
"""
_SERVED = f"""
from service.settings import read_settings
from service.inference.served_models import load_served_models
models = load_served_models(read_settings({{"DIPTYCH_MODELS": "hf:{REPOSITORY}"}}))
for model in models.values():
    print(model.id, model.entry.parameters)
"""


@pytest.mark.parametrize(
    ("failure", "texts"),
    [
        ("no repository", ("there is no such repository, or it is private",)),
        (
            "no revision",
            (
                (
                    f"cannot fetch {REPOSITORY} at its newest commit: the repository has no such"
                    " revision"
                ),
            ),
        ),
        ("server error", ("does not answer", "not all files are in the cache", "--source")),
        (
            "broken xet",
            (
                COMMIT,
                "the download failed (RuntimeError",
                "CAS Client Error",
                "the same command resumes it",
            ),
        ),
    ],
)
def test_failure_of_the_hub_is_one_line(
    failure: Failure, texts: tuple[str, ...], store: ModelStore, tmp_path: Path
) -> None:
    with running_hub(CHECKPOINT, failure) as hub:
        assert_refused(export(store, hub, tmp_path / "cache"), store, *texts)


def test_hub_that_cannot_be_reached_is_one_line(
    hub: LocalHub, store: ModelStore, tmp_path: Path
) -> None:
    run = export(store, hub, tmp_path / "cache", HF_ENDPOINT=UNREACHABLE)
    assert_refused(
        run, store, f"{UNREACHABLE} does not answer", f"not all files are in the cache {tmp_path}"
    )
    assert hub.requested == []


@pytest.mark.parametrize(
    ("environment", "revision"),
    [
        ({"HF_ENDPOINT": UNREACHABLE}, ()),
        ({"HF_ENDPOINT": UNREACHABLE}, ("bfloat16",)),
        ({"HF_HUB_OFFLINE": "1"}, ()),
        ({"HF_HUB_OFFLINE": "1"}, (COMMIT,)),
    ],
    ids=str,
)
def test_cached_checkpoint_needs_no_network(
    hub: LocalHub,
    store: ModelStore,
    tmp_path: Path,
    revision: tuple[str, ...],
    environment: dict[str, str],
) -> None:
    assert plan(store, hub, tmp_path / "cache", *revision) == COMMIT
    hub.requested.clear()
    assert plan(store, hub, tmp_path / "cache", *revision, **environment) == COMMIT
    assert hub.requested == []


def test_a_broken_download_resumes(store: ModelStore, tmp_path: Path) -> None:
    with running_hub(CHECKPOINT, "cut off") as hub:
        texts = (COMMIT, "the download failed (RemoteProtocolError", "the same command resumes it")
        assert_refused(export(store, hub, tmp_path / "cache"), store, *texts)
        run = export(store, hub, tmp_path / "cache", HF_HUB_OFFLINE="1")
        assert_refused(run, store, "not all files are in the cache")
        hub.failure = None
        assert plan(store, hub, tmp_path / "cache") == COMMIT


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
    run = store.python("-c", code, **hub.environment(tmp_path / "cache"))
    assert run.returncode == 0, run.stderr
    found, refused = run.stdout.splitlines()
    assert found == "config.json"
    assert f"config.json has sha256 {actual}; the catalog expects 000" in refused


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
        run = export(store, hub, tmp_path / "cache")
        assert f"not a checkpoint: export florence-2-mini, then hf:{REPOSITORY}" in run.stderr
    models = f"florence-2-mini,hf:{REPOSITORY}"
    run = store.python("-c", _SERVED.replace(f"hf:{REPOSITORY}", models))
    assert run.stdout.splitlines()[1:] == ["tests--florence-2-mini 2610240"], run.stderr


def test_other_files_are_named(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "tune.gguf").write_bytes(b"")
    with running_hub(tmp_path / "repository") as hub:
        run = store.export(f"hf:{REPOSITORY}", **hub.environment(tmp_path / "cache"))
    text = f"{REPOSITORY} lacks config.json; it has tune.gguf, a quantised model of llama.cpp"
    assert_refused(run, store, text)


def test_a_full_disk_is_one_line(hub: LocalHub, store: ModelStore, tmp_path: Path) -> None:
    small = tmp_path / "small"
    run = export(replace(store, prefix=small_disk(small, 2)), hub, small)
    assert_refused(run, store, f"no space left on the disk of {small}", "HF_HOME")

"""Adapters of a folder become models once the runner of their base has loaded them."""

import json
import logging
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from service.inference.hot_adapters import HotAdapters
from service.inference.models import ServedModel, ServedModels
from service.inference.runner_calls import RunnerClient
from service.inference.served_models import engine_model
from service.settings import Settings
from tasks.catalog import parse_entry
from tests.support.catalog import FLORENCE
from tests.support.fake_runners import FakeChannel, FakeDecoder, FakeEncoder
from tests.support.fake_service import FLORENCE_ID, PALIGEMMA_ID, run, runner_model, served_models
from tests.support.hostile_adapters import SPECIAL_FILES
from wire.artifacts.adapter_folder import (
    CONFIG_FILE,
    ENTRY_FILE,
    WEIGHTS_FILE,
    AdapterScan,
    adapter_build_key,
)
from wire.artifacts.manifest import sha256_of
from wire.runner_messages import AdapterStates

BOTH = [FLORENCE_ID, PALIGEMMA_ID]


@dataclass(slots=True)
class Watched:
    """A folder of adapters, and the served models that follow it."""

    folder: Path
    settings: Settings = Settings()  # noqa: RUF009  # frozen
    models: ServedModels = field(default_factory=served_models)
    channels: dict[str, FakeChannel] = field(init=False)
    published: list[tuple[str, bool]] = field(default_factory=list)
    adapters: HotAdapters = field(init=False)

    def __post_init__(self) -> None:
        self.channels = {model_id: FakeChannel(FakeEncoder(), FakeDecoder({})) for model_id in BOTH}
        runners = {model_id: RunnerClient(model_id, self.channels[model_id]) for model_id in BOTH}
        scan = AdapterScan(self.folder, now=lambda: 1e12)
        self.adapters = HotAdapters(
            scan, self.models, runners, self.settings, self._publish, 1_000_000
        )

    def _publish(self, model: ServedModel, is_served: bool) -> None:
        self.published.append((model.id, is_served))

    def write(
        self, name: str, weights: bytes = b"weights", base: str = FLORENCE_ID, entry: str = ""
    ) -> str:
        """Write an adapter; return its key."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        (path / CONFIG_FILE).write_text(json.dumps({"base_model_name_or_path": base}))
        (path / WEIGHTS_FILE).write_bytes(weights)
        if entry:
            (path / ENTRY_FILE).write_text(entry)
        return adapter_build_key(
            {file: sha256_of(path / file) for file in (CONFIG_FILE, WEIGHTS_FILE)}, "0" * 64
        )

    def answer(self, *loaded: str, base: str = FLORENCE_ID, refused: str | None = None) -> None:
        """Set what the runner of a base reports."""
        reasons = {} if refused is None else {refused: "bad"}
        self.channels[base].adapter_states = AdapterStates(
            loaded=frozenset(loaded), refused=reasons
        )

    def update(self) -> list[str]:
        """Update; return the ids of the served models."""
        run(self.adapters.update())
        return [model.id for model in self.models]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_adapter_is_listed_while_loaded(watched: Watched) -> None:
    key = watched.write("tuned")
    assert watched.update() == BOTH
    assert not watched.published
    watched.answer(key)
    assert watched.update() == [*BOTH, "tuned"]
    model = runner_model(watched.models, "tuned")
    base = watched.models.get(FLORENCE_ID)
    assert (model.backend_id, model.version) == (FLORENCE_ID, key)
    assert (model.manifest.adapter_of, model.precision) == (FLORENCE_ID, base.precision)
    assert model.checkpoint != base.checkpoint
    for _ in range(3):
        watched.update()
    assert watched.published == [("tuned", True)]
    shutil.rmtree(watched.folder / "tuned")
    assert watched.update() == BOTH
    assert watched.published == [("tuned", True), ("tuned", False)]


def test_adapter_names_a_base_alias(watched: Watched) -> None:
    base = runner_model(watched.models)
    named = replace(base, entry=replace(base.entry, aliases=("an/alias",)))
    watched.models.set_models({model.id: model for model in watched.models} | {base.id: named})
    watched.__post_init__()
    watched.answer(watched.write("tuned", base="an/alias"))
    assert watched.update() == [*BOTH, "tuned"]


def test_adapter_of_an_engine_is_refused(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"id": "far", "family": "openai", "url": "http://a/v1", "model": "org/m"}
    entry = parse_entry({**row, "dialect": "gemma"})
    assert entry.engine is not None
    far = engine_model(entry, entry.engine, watched.settings)
    watched.models.set_models({model.id: model for model in [*watched.models, far]})
    watched.__post_init__()
    watched.answer(watched.write("tuned"))
    watched.write("other", b"others", base="org/m")
    assert watched.update() == [*BOTH, "far", "tuned"]
    assert "its base 'org/m' is not served" in caplog.text


def test_version_before_stays_until_loaded(watched: Watched) -> None:
    first = watched.write("tuned")
    watched.answer(first)
    watched.update()
    second = watched.write("tuned", b"others")
    assert watched.update() == [*BOTH, "tuned"]
    assert watched.models.get("tuned").version == first
    watched.answer(first, second)
    watched.update()
    assert watched.models.get("tuned").version == second
    watched.answer(first, second, refused=watched.write("tuned", b"bad"))
    assert watched.update() == BOTH


def test_changed_entry_is_served(watched: Watched) -> None:
    key = watched.write("tuned")
    watched.answer(key)
    watched.update()
    assert "ocr" in watched.models.get("tuned").entry.task_ids
    watched.write("tuned", entry="tasks: {ocr: null}\nlicense: MIT")
    watched.update()
    model = watched.models.get("tuned")
    assert (model.version, model.entry.license, "ocr" in model.entry.task_ids) == (
        key,
        "MIT",
        False,
    )


def test_each_base_is_asked_for_its_own(watched: Watched) -> None:
    one = watched.write("one")
    other = watched.write("other", base=PALIGEMMA_ID)
    watched.answer(one, other, base=PALIGEMMA_ID)
    assert watched.update() == [*BOTH, "other"]
    watched.answer(one)
    assert watched.update() == [*BOTH, "one", "other"]


@pytest.mark.parametrize(
    ("name", "file", "text", "reason"),
    [
        ("bad", ENTRY_FILE, "license: 0x" + "f" * 5_000, "Exceeds the limit (4300 digits)"),
        ("bad", ENTRY_FILE, "a: [\nb", "cannot be read as YAML: ParserError: while parsing a flow"),
        ("bad", WEIGHTS_FILE, "w" * 1_000_001, "has 1000001 bytes; at most 1000000 are allowed"),
        *(("bad", WEIGHTS_FILE, kind, WEIGHTS_FILE) for kind in SPECIAL_FILES),
        (
            "tuned",
            CONFIG_FILE,
            '{"base_model_name_or_path": "another"}',
            f"its base 'another' is not served; the served models are {FLORENCE_ID} (",
        ),
        ("tuned", ENTRY_FILE, "tasks: {reading: null}", "'reading' is not a task"),
        ("tuned", ENTRY_FILE, "resolution: 224", "an adapter shares resolution with its base"),
        ("tuned", ENTRY_FILE, "- list", "must be a mapping of names"),
        ("tuned", ENTRY_FILE, "source: elsewhere", "source is not allowed"),
        ("Tuned", ENTRY_FILE, "", "id: String should match pattern"),
        (PALIGEMMA_ID, ENTRY_FILE, "", f"the catalog has a model '{PALIGEMMA_ID}'"),
    ],
)
def test_bad_adapter_is_refused_once(
    watched: Watched, caplog: pytest.LogCaptureFixture, name: str, file: str, text: str, reason: str
) -> None:
    watched.answer(watched.write(name), good := watched.write("good", b"others"))
    path = watched.folder / name / file
    if text in SPECIAL_FILES:
        path.unlink()
        SPECIAL_FILES[text](path)
    elif text:
        path.write_text(text)
    for _ in range(3):
        assert watched.update() == [*BOTH, "good"]
    assert watched.models.get("good").version == good
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    (line,) = record.getMessage().splitlines()
    assert line.startswith(f"the adapter {name} is refused: ")
    assert reason in line
    assert not record.exc_info


def test_stale_calibration_of_an_adapter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    points = {"scores": [0.5], "probabilities": [0.5]}
    row = {"model": "tuned", "checkpoint": "of another", "task": "object_detection", **points}
    (tmp_path / "calibration.json").write_text(json.dumps({"calibrations": [row]}))
    (tmp_path / "adapters").mkdir()
    watched = Watched(
        tmp_path / "adapters", Settings(calibration=(str(tmp_path / "calibration.json"),))
    )
    watched.answer(watched.write("tuned"))
    assert watched.update() == BOTH
    assert "is of the checkpoint 'of another'" in caplog.text


def test_start_waits_for_every_runner(watched: Watched) -> None:
    watched.write("tuned", base=FLORENCE.source)
    watched.channels[FLORENCE_ID].adapter_states = None
    watched.update()
    assert not watched.adapters.is_started
    watched.answer()
    watched.update()
    assert watched.adapters.is_started
    watched.channels[FLORENCE_ID].adapter_states = None
    watched.update()
    assert watched.adapters.is_started

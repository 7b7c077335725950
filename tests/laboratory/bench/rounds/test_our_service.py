"""The benchmark's client against the running service: requests of every task, and the values read
from the answers.
"""

import json
from pathlib import Path

import pytest

from laboratory.bench.material.models import BENCH_MODELS
from laboratory.bench.material.questions import model_material
from laboratory.bench.material.records import ModelMaterial, read_material
from laboratory.bench.measures import COLUMNS, profile_of
from laboratory.bench.rounds.client import DiptychApi, drive
from laboratory.bench.rounds.workloads import Scenes, requests_of
from loadtest.processes import cpu_s
from tests.support.catalog import FLORENCE
from tests.support.running_service import RunningService


@pytest.fixture
def florence(tmp_path: Path) -> ModelMaterial:
    listed = model_material(BENCH_MODELS[0], FLORENCE, tmp_path, num_scenes=1)
    (tmp_path / "material.json").write_text(json.dumps({"models": [listed]}))
    return read_material(tmp_path)[0]


def test_every_task_of_one_image_is_answered_with_its_stages(
    service: RunningService, florence: ModelMaterial
) -> None:
    requests = requests_of("one_image", Scenes(florence.scenes), 0)
    done = drive(service.url, DiptychApi(FLORENCE.id, {}), requests, 16, 60)
    assert len(done.samples) == len(FLORENCE.task_ids)
    assert all(sample.answer.generated_tokens > 0 for sample in done.samples)
    profile = profile_of(done.samples)
    assert all(profile.stages_ms[column] >= 0 for column in COLUMNS)


def test_processor_time_includes_all_processes_of_the_service(service: RunningService) -> None:
    parts = service.parts()
    assert len(parts) >= 3
    assert (
        cpu_s(service.process.pid) >= sum(cpu_s(process_id) for process_id in parts.values()) * 0.9
    )
    assert all(cpu_s(process_id) > 0 for process_id in parts.values())

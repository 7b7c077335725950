"""What the guides name is there: files, settings, metrics, panels; their tables and examples are those of the code."""

import re
from pathlib import Path

import pytest
import yaml
from loadtest.replicas import recorded, report

from loadtest.capacity import capacity_tables
from service.settings import Settings, variable
from tasks.catalog import parse_entry
from tests.support.dashboard import DASHBOARD
from tests.support.export_cli import ROOT

FOLDERS = "service|runners|tasks|export|client|loadtest|models|deploy|docs|tests"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.fixture(params=GUIDES, ids=lambda path: path.stem)
def guide(request: pytest.FixtureRequest) -> str:
    return Path(request.param).read_text(encoding="utf-8")


def test_every_file_that_a_guide_names_is_there(guide: str) -> None:
    named = re.findall(
        r"`((?:service|runners|tasks|export|client|loadtest|models|deploy|docs|tests)/[\w/.*-]+)`", guide
    )
    for name in named:
        assert list(ROOT.glob(name)), name


def test_every_setting_that_a_guide_names_is_one(guide: str) -> None:
    settings = {variable(field) for field in Settings.model_fields}
    assert set(re.findall(r"DIPTYCH_[A-Z_]+", guide)) <= settings


def test_every_section_that_a_guide_points_to_is_there() -> None:
    headings = set(re.findall(r"^#+ (.+)$", OPERATIONS, re.MULTILINE))
    assert set(re.findall(r"see (Diptych\w+)", OPERATIONS)) <= headings
    assert set(re.findall(r"\(\"([A-Z][\w ,]+)\"\)", OPERATIONS)) <= headings | panel_titles()


def test_the_guide_explains_every_row_of_the_dashboard() -> None:
    rows = {panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"}
    explained = OPERATIONS.partition("## Read the dashboard")[2].partition("\n## ")[0]
    assert set(re.findall(r"^- \*\*([\w ]+)\*\*:", explained, re.MULTILINE)) == rows


def test_the_entry_of_a_tuned_checkpoint_is_one() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", OPERATIONS, re.DOTALL)
    (row,) = yaml.safe_load(example)
    entry = parse_entry(row)
    assert entry.offers("visual_question_answering")
    assert not entry.offers("ocr")


def test_the_tables_of_scaling_are_those_of_the_last_bench() -> None:
    scaling = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    tables = capacity_tables((ROOT / "loadtest" / "results" / "bench.md").read_text(encoding="utf-8"))
    for each in tables.split("\n\n"):
        assert each in scaling, "print them anew with python -m loadtest.capacity"


def test_the_growth_with_replicas_is_that_of_the_last_run() -> None:
    scaling = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    points, most = recorded(ROOT / "loadtest" / "results" / "replicas.json")
    assert report(points, most) in scaling, "put in what python -m loadtest.replicas printed"


def panel_titles() -> set[str]:
    return {panel["title"] for panel in DASHBOARD["panels"]}

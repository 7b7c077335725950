"""README.md, SECURITY.md and docs/: generated tables are current, links and names exist.

tests/system/test_readme.py runs the README's blocks.
"""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from docs.tables import PAGES, task_table, with_tables
from service.settings import Settings, variable
from tasks.catalog import adapter_entry, load_catalog
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.export_cli import ROOT
from tests.support.monitoring import declared_metrics

FOLDERS = (
    "service|runners|wire|imaging|tasks|export|laboratory|offline|"
    "client|loadtest|models|deploy|docs|tests"
)
CARDS = sorted(ROOT.glob("models/*-*/README.md"))
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
ALL_TEXTS = TEXTS | {str(card.relative_to(ROOT)): card.read_text("utf-8") for card in CARDS}
SETTINGS = {variable(field) for field in Settings.model_fields}
FILE_NAMES = {path.name for path in ROOT.iterdir()}
for folder in FOLDERS.split("|"):
    FILE_NAMES |= {path.name for path in (ROOT / folder).rglob("*")}
README = TEXTS["README.md"]
TREE = README.partition("## Folders\n\n```text\n")[2].partition("```")[0]


@pytest.fixture(params=ALL_TEXTS)
def page(request: pytest.FixtureRequest) -> str:
    """The name of each page, and of each model's card."""
    return str(request.param)


@pytest.fixture
def text(page: str) -> str:
    """Its text."""
    return ALL_TEXTS[page]


def test_generated_tables(text: str) -> None:
    assert with_tables(text) == text, "write the tables again: python -m docs.tables"


def test_task_table() -> None:
    lines = task_table([FLORENCE, PALIGEMMA]).splitlines()
    assert lines[0] == "| task | parameters | florence-2-mini | paligemma-mini |"
    assert lines[1] == "| --- | --- | --- | --- |"
    assert lines[2] == "| `captioning` | [`detail`], [`language`] | yes | yes |"
    assert lines[5] == "| `phrase_grounding` | `caption` or `phrases` | yes | yes |"
    assert lines[11] == "| `region_description` | `region`, [`detail`] | yes |  |"
    assert lines[12] == "| `visual_question_answering` | `question`, [`language`] | yes | yes |"
    assert len(lines) == 13


def test_links(page: str, text: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        assert "://" not in path, target
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in map(slug, headings(file.read_text(encoding="utf-8"))), target


def test_names_on_pages(text: str) -> None:
    """Files, modules without their folder, settings and metrics that a page names are there."""
    files = re.findall(rf"`((?:{FOLDERS})/[\w/.*-]*)`", text)
    assert [name for name in files if not list(ROOT.glob(name))] == []
    assert set(re.findall(r"`([\w-]+\.(?:py|js|proto))`", text)) - FILE_NAMES == set()
    assert set(re.findall(r"DIPTYCH_[A-Z_]*[A-Z]", text)) - SETTINGS == set()
    metrics = re.findall(r"`(diptych_\w+?)(?:_total|_bucket|_sum|_count)?`", text)
    assert set(metrics) - declared_metrics() - {"diptych_client"} == set()


def test_commands_on_pages(text: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    commands = "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text)])
    assert set(re.findall(r"^make ([\w-]+)", commands, re.MULTILINE)) - targets == set()
    for module in re.findall(r"python -m ([\w.]+)", commands):
        assert importlib.util.find_spec(module), module


def test_pages_in_the_readme() -> None:
    assert {name for name in TEXTS if f"({name})" in README} == set(TEXTS) - {"README.md"}


def test_tree_of_the_readme() -> None:
    folders = set[str]()
    above = ""
    for indent, name in re.findall(r"^( *)([\w]+)/ ", TREE, re.MULTILINE):
        above = above if indent else name
        folders.add(f"{above}/{name}" if indent else name)
    assert [name for name in sorted(folders) if not (ROOT / name).is_dir()] == []
    for path in ROOT.glob("[!.]*/*/__init__.py"):
        name = path.parent.relative_to(ROOT).as_posix()
        if name.split("/")[0] in ("service", "runners", "wire", "tasks"):
            assert name in folders, name


def test_entries_on_the_page_of_models(tmp_path: Path) -> None:
    tuned, adapter, watched = re.findall(r"```yaml\n(.*?)```", TEXTS["docs/models.md"], re.DOTALL)
    catalog = tmp_path / "catalog.yaml"
    released = (ROOT / "models" / "catalog.yaml").read_text(encoding="utf-8")
    catalog.write_text(released + tuned + adapter)
    entries = load_catalog(catalog)
    *_, tuned_entry, adapted = entries.values()
    row = yaml.safe_load(watched)
    other = adapter_entry("invoices", "adapters/invoices", row, entries["florence-2-base"])
    assert "visual_question_answering" in tuned_entry.task_ids
    assert "ocr" not in tuned_entry.task_ids
    assert adapted.adapter_of == "florence-2-base"
    assert "visual_question_answering" in adapted.task_ids
    assert other.tasks == adapted.tasks


def headings(text: str) -> set[str]:
    """Return the headings of a page, without code blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"^#+ (.+)$", prose, re.MULTILINE))


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")

"""README.md, SECURITY.md and docs/: generated tables are current, links and names exist.

tests/system/test_readme.py runs the README's blocks.
"""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from docs.tables import PAGES, with_tables
from service.settings import Settings, variable
from tasks.catalog import adapter_entry, load_catalog
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


@pytest.mark.parametrize("text", ALL_TEXTS.values(), ids=ALL_TEXTS)
def test_generated_tables(text: str) -> None:
    assert with_tables(text) == text, "write the tables again: python -m docs.tables"


@pytest.mark.parametrize("page", ALL_TEXTS)
def test_links(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", ALL_TEXTS[page]):
        path, _, anchor = target.partition("#")
        assert "://" not in path, target
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            # GitHub's anchor of a heading
            slugs = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
            assert anchor in slugs, target


@pytest.mark.parametrize("text", ALL_TEXTS.values(), ids=ALL_TEXTS)
def test_names_on_pages(text: str) -> None:
    """Files, modules without their folder, settings, metrics and commands of a page are there."""
    files = re.findall(rf"`((?:{FOLDERS})/[\w/.*-]*)`", text)
    assert [name for name in files if not list(ROOT.glob(name))] == []
    assert set(re.findall(r"`([\w-]+\.(?:py|js|proto))`", text)) - FILE_NAMES == set()
    assert set(re.findall(r"DIPTYCH_[A-Z_]*[A-Z]", text)) - SETTINGS == set()
    metrics = re.findall(r"`(diptych_\w+?)(?:_total|_bucket|_sum|_count)?`", text)
    assert set(metrics) - declared_metrics() - {"diptych_client"} == set()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)) <= set(targets)
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module


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

"""README.md, SECURITY.md and docs/: generated tables are current, links and names exist.

tests/system/test_readme.py runs the README's blocks.
"""

import importlib.util
import re
from itertools import chain
from pathlib import Path

import pytest
import yaml

from docs.tables import PAGES, task_table, with_tables
from service.settings import Settings, variable
from tasks.catalog import adapter_entry, load_catalog
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.declared_metrics import declared_metrics
from tests.support.export_cli import ROOT

FOLDERS = (
    "service|runners|wire|imaging|tasks|export|laboratory|offline|"
    "client|loadtest|models|deploy|docs|tests"
)
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
CARDS = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in sorted(ROOT.glob("models/*-*/README.md"))
}
README = TEXTS["README.md"]
TREE = README.partition("## Folders\n\n```text\n")[2].partition("```")[0]


@pytest.fixture(params=TEXTS | CARDS)
def page(request: pytest.FixtureRequest) -> str:
    """The name of each page, and of each model's card."""
    return str(request.param)


@pytest.fixture
def text(page: str) -> str:
    """Its text."""
    return (TEXTS | CARDS)[page]


def test_every_table_is_the_generated_one(text: str) -> None:
    assert with_tables(text) == text, "write the tables again: python -m docs.tables"


def test_each_task_is_a_row_and_each_model_a_column() -> None:
    lines = task_table([FLORENCE, PALIGEMMA]).splitlines()
    assert lines[0] == "| task | parameters | florence-2-mini | paligemma-mini |"
    assert lines[1] == "| --- | --- | --- | --- |"
    assert lines[2] == "| `captioning` | [`detail`], [`language`] | yes | yes |"
    assert lines[5] == "| `phrase_grounding` | `caption` or `phrases` | yes | yes |"
    assert lines[11] == "| `region_description` | `region`, [`detail`] | yes |  |"
    assert lines[12] == "| `visual_question_answering` | `question`, [`language`] | yes | yes |"
    assert len(lines) == 13


def test_every_link_leads_somewhere(page: str, text: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        assert "://" not in path, target
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in map(slug, headings(file.read_text(encoding="utf-8"))), target


def test_every_file_that_a_page_names_is_there(text: str) -> None:
    names = re.findall(rf"`((?:{FOLDERS})/[\w/.*-]*)`", text)
    assert [name for name in names if not list(ROOT.glob(name))] == []


def test_every_module_that_a_page_names_without_its_folder_is_there(text: str) -> None:
    names = set(re.findall(r"`([\w-]+\.(?:py|js|proto))`", text))
    folders = [ROOT, *map(ROOT.joinpath, FOLDERS.split("|"))]
    below = chain.from_iterable(root.rglob("*") for root in folders[1:])
    there = {path.name for path in chain(ROOT.iterdir(), below)}
    assert names - there == set()


def test_every_setting_that_a_page_names_is_one(text: str) -> None:
    settings = {variable(field) for field in Settings.model_fields}
    assert set(re.findall(r"DIPTYCH_[A-Z_]*[A-Z]", text)) - settings == set()


def test_every_metric_that_a_page_names_is_declared(text: str) -> None:
    for name in set(re.findall(r"`(diptych_\w+)`", text)) - {"diptych_client"}:
        assert re.sub(r"_(total|bucket|sum|count)$", "", name) in declared_metrics()


def test_every_command_that_a_page_names_is_one(text: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    blocks = [
        code for _, code in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]
    commands = "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text)])
    assert set(re.findall(r"^make ([\w-]+)", commands, re.MULTILINE)) - targets == set()
    for module in re.findall(r"python -m ([\w.]+)", commands):
        assert importlib.util.find_spec(module), module


def test_every_page_is_listed_in_the_readme() -> None:
    assert {name for name in TEXTS if f"({name})" in README} == set(TEXTS) - {"README.md"}


def test_the_tree_of_the_readme_has_every_folder() -> None:
    names = set[str]()
    above = ""
    for indent, name in re.findall(r"^( *)([\w]+)/ ", TREE, re.MULTILINE):
        above = above if indent else name
        names.add(f"{above}/{name}" if indent else name)
    assert [name for name in sorted(names) if not (ROOT / name).is_dir()] == []
    packages = {
        path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("[!.]*/*/__init__.py")
    }
    trees = ("service", "runners", "wire", "tasks")
    listed = {name for name in packages if name.split("/")[0] in trees}
    assert listed - names - {"service/rpc/proto"} == set()


def test_the_entries_of_a_tuned_checkpoint_and_of_an_adapter_are_entries(tmp_path: Path) -> None:
    tuned, adapter, watched = re.findall(r"```yaml\n(.*?)```", TEXTS["docs/models.md"], re.DOTALL)
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        (ROOT / "models" / "catalog.yaml").read_text(encoding="utf-8") + tuned + adapter
    )
    *_, checkpoint, adapted = (entries := load_catalog(catalog)).values()
    named = adapter_entry(
        "invoices", "adapters/invoices", yaml.safe_load(watched), entries["florence-2-base"]
    )
    assert "visual_question_answering" in checkpoint.task_ids
    assert "ocr" not in checkpoint.task_ids
    assert adapted.adapter_of == "florence-2-base"
    assert "visual_question_answering" in adapted.task_ids
    assert named.tasks == adapted.tasks


def headings(text: str) -> set[str]:
    """Return the headings of a page, without code blocks."""
    return set(
        re.findall(
            r"^#+ (.+)$",
            re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE),
            re.MULTILINE,
        )
    )


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")

"""`python -m tests.support.form_outcomes` builds every form of checkpoint and adapter.

The outcomes are written into checkpoint_forms.json, for the test to compare.
"""

import json
import shutil
import tempfile
from pathlib import Path

from tests.support import adapter_forms, checkpoint_forms
from tests.support.adapter_forms import ADAPTER_FORMS, MODEL_IDS
from tests.support.checkpoint_forms import FORMS, Base

OUTCOMES_FILE = Path(__file__).with_name("checkpoint_forms.json")
Outcomes = dict[str, dict[str, str]]


def read_outcomes() -> Outcomes:
    """Return the outcome of every form, by base and name."""
    outcomes: Outcomes = json.loads(OUTCOMES_FILE.read_text(encoding="utf-8"))
    return outcomes


def checkpoint_outcomes(base: Base, scratch: Path) -> dict[str, str]:
    """Build the forms of a base."""
    folder = scratch / "base"
    folder.mkdir()
    checkpoint_forms.write_base(base, folder)
    expected = checkpoint_forms.read(base, folder)
    given: dict[str, str] = {}
    for form in (form for form in FORMS if form.base == base):
        place = scratch / "form"
        given[form.name] = checkpoint_forms.outcome(form, folder, expected, place)
        shutil.rmtree(place)
    return given


def adapter_outcomes(base: adapter_forms.AdapterBase, scratch: Path) -> dict[str, str]:
    """Make the adapters of a base."""
    folder = scratch / "base"
    folder.mkdir()
    adapter_forms.write_base(base, folder)
    given: dict[str, str] = {}
    for form in (form for form in ADAPTER_FORMS if form.base == base):
        place = scratch / "adapter"
        given[form.name] = adapter_forms.outcome(form, folder, place)
        shutil.rmtree(place)
    return given


def main() -> None:
    """Build every form and write the outcomes."""
    outcomes: Outcomes = {}
    for base in dict.fromkeys(form.base for form in FORMS):
        with tempfile.TemporaryDirectory() as scratch:
            outcomes[base] = checkpoint_outcomes(base, Path(scratch))
    for adapter_base in MODEL_IDS:
        with tempfile.TemporaryDirectory() as scratch:
            outcomes[adapter_base] = adapter_outcomes(adapter_base, Path(scratch))
    text = json.dumps(outcomes, indent=1, ensure_ascii=False)
    OUTCOMES_FILE.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

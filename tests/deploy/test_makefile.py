"""`make` takes models separated by spaces or commas, and refuses an option that it would ignore."""

import subprocess

import pytest

from tests.support.catalog import ROOT


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--dry-run", "serve", *words], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("models", ["a b", "a,b", "a, b"])
def test_models_are_separated_by_spaces_or_commas(models: str) -> None:
    printed = make(f"MODELS={models}").stdout
    assert "-m export --if-changed a b\n" in printed.replace("  ", " ")
    assert "DIPTYCH_MODELS:-a,b}" in printed


def test_an_option_model_is_refused_with_the_right_one() -> None:
    refused = make("MODEL=a")
    assert refused.returncode
    assert 'MODEL is not an option: MODELS="a"' in refused.stderr

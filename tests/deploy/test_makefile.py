"""`make` takes models separated by spaces or commas, and refuses an option that it would ignore."""

import subprocess

import pytest

from tests.support.catalog import ROOT


def make(variable: str) -> "subprocess.CompletedProcess[str]":
    command = ["make", "--dry-run", "serve", variable]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("models", ["a b", "a,b", "a, b"])
def test_models_have_spaces_or_commas(models: str) -> None:
    printed = make(f"MODELS={models}").stdout
    assert "-m export --if-changed a b\n" in printed.replace("  ", " ")
    assert "DIPTYCH_MODELS:-a,b}" in printed


def test_option_model_is_refused() -> None:
    refused = make("MODEL=a")
    assert refused.returncode
    assert 'MODEL is not an option: MODELS="a"' in refused.stderr

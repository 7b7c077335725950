"""The card of the tests, and the models that are tested on it: those of GPU_MODELS."""

import os
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from tests.gpu.card import Card
from tests.gpu.fake_cuda.environment import PYTHON, VARIABLES, can_compile, is_installed, make
from tests.support.export_cli import EMBEDDED
from wire.artifacts.model_store import store_home

MODELS = os.environ.get("GPU_MODELS", " ".join(EMBEDDED)).split()


# `make gpu-check` installs the packages for CUDA where the host has a card.
IS_REAL = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def pytest_report_header() -> str:
    name = torch.cuda.get_device_name() if IS_REAL else "none; the fake CUDA runtime replaces it"
    return f"card: {name}; torch {torch.__version__}"


@pytest.fixture(scope="session")
def card(request: pytest.FixtureRequest) -> Card:
    """This host's card, or the fake one, which a long run installs (0.8 GB)."""
    if IS_REAL:
        return Card(True, Path(sys.executable), store_home())
    is_wanted = "not long" not in request.config.option.markexpr
    if not can_compile() or not (is_installed() or is_wanted):
        pytest.skip(
            "gcc, or torch and ONNX Runtime for CUDA, are missing: the GPU's code is NOT tested"
        )
    make()
    return Card(False, PYTHON, request.getfixturevalue("exported").home, VARIABLES)


@pytest.fixture
def real_card(card: Card) -> Card:
    if not card.is_real:
        pytest.skip("needs a card that computes; the fake CUDA runtime has only structure")
    return card


@pytest.fixture
def fake_card(card: Card) -> Card:
    if card.is_real:
        pytest.skip("needs faults or an order that only the fake CUDA runtime has")
    return card


@pytest.fixture(params=MODELS)
def model_id(request: pytest.FixtureRequest) -> str:
    return str(request.param)

import pytest
from tokenizers import Tokenizer

from laboratory.training.data.tokenizers import florence2_tokenizer, paligemma_tokenizer
from tasks.catalog import CatalogEntry
from tests.support.catalog import CATALOG

MAKERS = {"florence2": florence2_tokenizer, "paligemma": paligemma_tokenizer}


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Tokenizer]:
    """A newly trained vocabulary of each embedded model."""
    return {
        model_id: MAKERS[CATALOG[model_id].family](CATALOG[model_id])
        for model_id in ("florence-2-mini", "paligemma-mini")
    }


@pytest.fixture
def entry(model_id: str) -> CatalogEntry:
    """The catalog's entry of each embedded model."""
    return CATALOG[model_id]


@pytest.fixture
def tokenizer(tokenizers: dict[str, Tokenizer], model_id: str) -> Tokenizer:
    """The vocabulary of each embedded model."""
    return tokenizers[model_id]

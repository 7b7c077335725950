"""Errors for a person whose labelled images prove nothing."""

import pytest

from diptych_client.evaluation.annotation.guarantee import Promise, check_enough
from diptych_client.evaluation.questions import ObjectsTruth, TextsTruth
from diptych_client.long_runs import RunError


def test_too_few_labelled_images_are_refused_with_the_number_that_could_be_enough() -> None:
    promise = Promise(0.02, 0.975)
    with pytest.raises(RunError) as caught:
        check_enough([TextsTruth(("a",))] * 20, promise)
    words = str(caught.value)
    assert words.startswith("with 20 labelled images no threshold can be proved: at least about ")
    assert "are needed for at most 2 % wrong with 97.5 % confidence" in words
    check_enough([TextsTruth(("a",))] * 400, promise)


def test_labelled_images_without_an_object_prove_nothing() -> None:
    with pytest.raises(RunError, match="there is no object in 3 labelled images"):
        check_enough([ObjectsTruth(())] * 3, Promise(0.05, 0.95))

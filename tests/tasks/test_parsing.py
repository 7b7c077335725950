import math

import pytest

from tasks.parsing import GeneratedText, Location, resolve_label


@pytest.mark.parametrize(
    ("written", "names", "expected"),
    [
        ("dog", ["Dog", "cat"], "Dog"),
        ("STRASSE", ["straße"], "straße"),
        ("puppy", ["dog"], "puppy"),
        ("puppy", [], "puppy"),
        ("dog", ["a dog", "a cat"], "a dog"),
        ("the dog", ["dog"], "dog"),
        # the equal one before the one that differs by its article
        ("dog", ["a dog", "dog"], "dog"),
        ("a", ["the"], "a"),
        ("", ["dog"], "dog"),
        ("", ["dog", "cat"], ""),
        ("", [], ""),
    ],
)
def test_label_of_a_name(written: str, names: list[str], expected: str) -> None:
    assert resolve_label(written, names) == expected


TEXT = GeneratedText("red ün<loc_1>", (4, 4, 5, 6, 13), (-1.0, -2.0, -4.0, -8.0, -16.0), "stop")


@pytest.mark.parametrize(
    ("spans", "logprobs"),
    [
        (((0, 4),), [-1]),
        (((0, 3),), [-1]),
        (((4, 5),), [-2, -4]),  # the token of no width is a byte of ü
        (((0, 5),), [-1, -2, -4]),
        (((5, 6),), [-8]),
        (((6, 13),), [-16]),
        (((0, 4), (6, 13)), [-1, -16]),
        (((0, 4), (1, 2)), [-1]),  # a token counts once
        (((0, 13),), [-1, -2, -4, -8, -16]),
    ],
)
def test_score(spans: tuple[tuple[int, int], ...], logprobs: list[float]) -> None:
    mean = sum(logprobs) / len(logprobs)
    runs = [(Location(0, (start, start)), Location(0, (end, end))) for start, end in spans]
    assert TEXT.score((), runs) == pytest.approx(math.exp(mean))
    assert TEXT.score(spans, ()) == pytest.approx(math.exp(sum(logprobs)))
    assert TEXT.score(spans, runs) == pytest.approx(math.exp(sum(logprobs) + mean))


def test_score_is_at_most_one() -> None:
    run = [Location(0, (0, 1))]
    assert GeneratedText("a", (1,), (1e-7,), "length").score((), [run]) == 1.0

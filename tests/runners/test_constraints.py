import math
import random

import pytest
import torch

from runners.decoder.constraints import Constraint, Constraints
from runners.decoder.vocabulary import Vocabulary
from runners.transport.patterns import ExactText, InOrder, OneOf, OneToken, Pattern, Repeated

EOS, SEPARATOR = 1, 2
LOCATIONS, CODES = range(3, 7), range(7, 9)
TEXT = {9: b"a", 10: b"ab", 11: b"b", 12: b" ", 13: b";", 14: "ä".encode()[:1], 15: "ä".encode()[1:]}
CONTROL = (
    {0: "<pad>", EOS: "<eos>", SEPARATOR: "<sep>"}
    | {i: f"<loc_{i}>" for i in LOCATIONS}
    | {i: f"<seg00{i}>" for i in CODES}
)
VOCABULARY = Vocabulary(TEXT, CONTROL)
LOCATION, WORD = OneToken(of="location"), OneToken(of="text")


def constraint(pattern: Pattern) -> Constraint:
    return Constraint(pattern, VOCABULARY, {EOS})


def allowed_after(pattern: Pattern, *token_ids: int) -> set[int]:
    made = constraint(pattern)
    state = made.start()
    for token_id in token_ids:
        assert token_id in made.allowed_ids(state)
        state = made.after(state, token_id)
    return set(made.allowed_ids(state))


def boxes(label: Pattern) -> Pattern:
    entry = InOrder(parts=(label, Repeated(part=LOCATION, min=2, max=2)))
    return Repeated(part=entry, min=0, max=None)


@pytest.mark.parametrize(
    ("pattern", "written", "expected"),
    [
        (LOCATION, (), set(LOCATIONS)),
        (LOCATION, (3,), {EOS}),
        (OneToken(of="segmentation"), (), set(CODES)),
        (OneToken(of="<sep>"), (), {SEPARATOR}),
        (OneToken(of="<nowhere>"), (), set()),
        (WORD, (), set(TEXT)),
        (ExactText(text="ab"), (), {9, 10}),
        (ExactText(text="ab"), (9,), {11}),
        (ExactText(text="ab"), (10,), {EOS}),
        (ExactText(text="ä"), (14,), {15}),
        (ExactText(text=""), (), {EOS}),
        (OneOf(options=(ExactText(text="a"), ExactText(text="ab"))), (9,), {EOS, 11}),
        (Repeated(part=LOCATION, min=2, max=3), (3,), set(LOCATIONS)),
        (Repeated(part=LOCATION, min=2, max=3), (3, 3), {EOS, *LOCATIONS}),
        (Repeated(part=LOCATION, min=2, max=3), (3, 3, 3), {EOS}),
        (Repeated(part=LOCATION, min=0, max=None), (3,) * 20, {EOS, *LOCATIONS}),
        (boxes(Repeated(part=WORD, min=1, max=None)), (), {EOS, *TEXT}),
        (boxes(Repeated(part=WORD, min=1, max=None)), (9,), {*TEXT, *LOCATIONS}),
        (boxes(Repeated(part=WORD, min=1, max=None)), (9, 3), set(LOCATIONS)),
        (boxes(ExactText(text="a")), (9, 3, 4), {EOS, 9}),
    ],
)
def test_what_can_come_next(pattern: Pattern, written: tuple[int, ...], expected: set[int]) -> None:
    assert allowed_after(pattern, *written) == expected


def test_any_way_through_a_pattern_spells_what_it_says() -> None:
    entry = InOrder(parts=(ExactText(text="ab ;ä"), Repeated(part=LOCATION, min=4, max=4)))
    made, rng = constraint(Repeated(part=entry, min=1, max=2)), random.Random(0)
    for _ in range(50):
        state, written = made.start(), []
        while (token_id := rng.choice(made.allowed_ids(state))) != EOS:
            written.append(token_id)
            state = made.after(state, token_id)
        text = b"".join(b"L" if token_id in LOCATIONS else VOCABULARY.bytes_of(token_id) for token_id in written)
        assert text.decode() in ("ab ;äLLLL", "ab ;äLLLLab ;äLLLL")


def test_what_is_allowed_keeps_its_log_probability() -> None:
    logprobs = torch.log_softmax(torch.arange(16, dtype=torch.float32), dim=-1)
    made = constraint(OneOf(options=(LOCATION, OneToken(of="<sep>"))))
    masked = made.masked(made.start(), logprobs)
    assert masked[[SEPARATOR, *LOCATIONS]].tolist() == logprobs[[SEPARATOR, *LOCATIONS]].tolist()
    assert masked[[0, EOS, *CODES, *TEXT]].tolist() == [-math.inf] * (4 + len(TEXT))


def test_constraints_are_kept_and_the_oldest_is_dropped() -> None:
    kept = Constraints(VOCABULARY, {EOS}, max_kept=2)
    first = kept.get(ExactText(text="a"))
    second = kept.get(ExactText(text="b"))
    assert kept.get(ExactText(text="a")) is first
    kept.get(ExactText(text="ab"))
    assert kept.get(ExactText(text="a")) is first
    assert kept.get(ExactText(text="b")) is not second

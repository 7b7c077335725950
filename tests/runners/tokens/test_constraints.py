import math
import random

import pytest
import torch

from runners.errors import SequenceError
from runners.tokens.text import Constraint, Constraints, TokenMasks
from tests.support import token_choices
from tests.support.fake_decoder import tiny_tokenizer
from tests.support.token_choices import is_failure, masked

EOS = 1
SEPARATOR = 2
SIZE = 16
LOCATIONS = range(3, 7)
CODES = range(7, 9)
# Ã and ¤ are the two bytes of ä
TEXT = {9: "a", 10: "ab", 11: "b", 12: "Ġ", 13: ";", 14: "Ã", 15: "¤"}
BYTES = {number: text.replace("Ġ", " ").encode("latin-1") for number, text in TEXT.items()}
STARTS_A_CHARACTER = {*TEXT} - {15}
CONTROL = (
    {0: "<pad>", EOS: "<eos>", SEPARATOR: "<sep>"}
    | {i: f"<loc_{i}>" for i in LOCATIONS}
    | {i: f"<seg00{i}>" for i in CODES}
)
CONSTRAINTS = Constraints(tiny_tokenizer(TEXT, CONTROL), {EOS})
BOXES = "start: (TEXT location{2})*\nTEXT: /(?s:.)+/"


def allowed_ids(constraint: Constraint) -> set[int]:
    return set(token_choices.allowed_ids(constraint, 2 * SIZE))


def allowed_after(grammar: str, *token_ids: int) -> set[int]:
    constraint = CONSTRAINTS.get(grammar)
    for token_id in token_ids:
        assert token_id in allowed_ids(constraint)
        constraint = constraint.after(token_id)
    return allowed_ids(constraint)


@pytest.mark.parametrize(
    ("grammar", "written", "expected"),
    [
        ("start: location", (), set(LOCATIONS)),
        ("start: location", (3,), {EOS}),
        ("start: location | segmentation", (), {*LOCATIONS, *CODES}),
        ("start: <sep>", (), {SEPARATOR}),
        ("start: /(?s:.)/", (), STARTS_A_CHARACTER - {10}),
        ('start: "ab"', (9,), {11}),
        ('start: "\\u00e4"', (14,), {15}),
        ('start: T\nT: "a" | "ab"', (9,), {EOS, 11}),
        ("start: location{2,3}", (3, 3), {EOS, *LOCATIONS}),
        ("start: location*", (3,) * 20, {EOS, *LOCATIONS}),
        (BOXES, (), {EOS, *STARTS_A_CHARACTER}),
        (BOXES, (9,), {*STARTS_A_CHARACTER, *LOCATIONS}),
        ('start: ("a" location{2})*', (9, 3, 4), {EOS, 9}),
    ],
)
def test_allowed_tokens_by_grammar_and_prefix(
    grammar: str, written: tuple[int, ...], expected: set[int]
) -> None:
    assert allowed_after(grammar, *written) == expected


def test_every_path_through_a_grammar_spells_its_text() -> None:
    rng = random.Random(0)
    for _ in range(50):
        constraint = CONSTRAINTS.get('start: ("ab ;ä" location{4}){1,2}')
        written = []
        while (token_id := rng.choice(sorted(allowed_ids(constraint)))) != EOS:
            written.append(token_id)
            constraint = constraint.after(token_id)
        text = b"".join(b"L" if token_id in LOCATIONS else BYTES[token_id] for token_id in written)
        assert text.decode() in ("ab ;äLLLL", "ab ;äLLLLab ;äLLLL")


def test_a_state_is_unchanged_when_beams_continue_from_it() -> None:
    constraint = CONSTRAINTS.get(BOXES).after(9)
    before = allowed_ids(constraint)
    text = constraint.after(11)
    box = constraint.after(3)
    assert allowed_ids(text) == before
    assert allowed_ids(box) == {*LOCATIONS}
    assert allowed_ids(constraint) == before


def test_allowed_tokens_keep_their_log_probabilities() -> None:
    logprobs = torch.log_softmax(torch.arange(SIZE, dtype=torch.float32), dim=-1)
    rows = masked(CONSTRAINTS.get("start: location | <sep>"), logprobs)
    assert rows[[SEPARATOR, *LOCATIONS]].tolist() == logprobs[[SEPARATOR, *LOCATIONS]].tolist()
    assert rows[[0, EOS, *CODES, *TEXT]].tolist() == [-math.inf] * (4 + len(TEXT))


@pytest.mark.parametrize("grammar", ["start: <poly>", "start: nothing", 'start: "a', ""])
def test_a_malformed_grammar_is_refused(grammar: str) -> None:
    with pytest.raises(SequenceError, check=is_failure("internal")):
        CONSTRAINTS.get(grammar)


def test_a_token_that_is_not_allowed_is_refused() -> None:
    constraint = CONSTRAINTS.get("start: location")
    with pytest.raises(
        SequenceError, check=is_failure("internal"), match="the grammar failed at token 9"
    ):
        constraint.after(9)


def test_end_token_without_a_text_is_never_allowed_and_loads() -> None:
    """A checkpoint may end with a padding row of its embeddings: the answer stops where the grammar
    leaves nothing.
    """
    never_ends = Constraints(tiny_tokenizer(TEXT, CONTROL), {SIZE + 5}).get("start: location")
    assert SIZE + 5 not in allowed_ids(never_ends.after(LOCATIONS[0]))


def test_masks_of_a_pass_are_those_of_each_state() -> None:
    """Few states, then enough for threads; some are added twice, as unfinished beams share one."""
    constraint = CONSTRAINTS.get(BOXES)
    box = constraint.after(9)
    masks = TokenMasks(CONSTRAINTS.num_tokens)
    for num_states in (1, 3, 40):
        states = [constraint, *[constraint.after(9) for _ in range(num_states)]]
        for index in range(1, num_states, 3):
            states[index] = box.after(LOCATIONS[0])
        states += states
        masks.clear(len(states))
        rows = [masks.add(state) for state in states]
        masks.compute()
        for state, row in zip(states, rows, strict=True):
            assert row.tolist() == state.allowed().tolist()

"""Drafts from the prompt, the length that pays, and their effect on sequences in a scheduler."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from runners.decoder.batch import generate_all, start_sequence
from runners.decoder.engines import EagerEngine, rows_of
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest
from runners.errors import SequenceError
from runners.kv_cache import SlotCache
from runners.options import SchedulerLimits
from runners.tokens.text import Constraints, GenerationRules, PromptWords
from tests.support.fake_decoder import EOS, FAKE_SHAPE, POISON, FakeDecoder, tiny_tokenizer
from tests.support.passes import WithoutDrafts
from tests.support.token_choices import is_failure

# A word is a letter, spelled alone where a label starts and with a space (Ġ) before it elsewhere.
NUM_LETTERS = 60
LETTERS = [
    chr(ord("A") + index) for index in range(NUM_LETTERS) if chr(ord("A") + index) not in "<>\"'\\"
]
FIRST = {letter: 3 + index for index, letter in enumerate(LETTERS)}
SPACED = {letter: 3 + len(LETTERS) + index for index, letter in enumerate(LETTERS)}
TEXT = {number: letter for letter, number in FIRST.items()} | {
    number: f"Ġ{letter}" for letter, number in SPACED.items()
}
CONSTRAINTS = Constraints(tiny_tokenizer(TEXT, {0: "<pad>", 1: "<eos>", 2: "<loc_1>"}), {1})
LABELS = 'start: (LABEL location)*\nLABEL: "A B" | "C D"'
FREE = "start: (TEXT location)*\nTEXT: /(?s:.)+/"


def prompt(letters: str) -> PromptWords:
    return PromptWords(
        [SPACED[letter] for letter in letters], [FIRST[letter] for letter in letters]
    )


def continuation(grammar: str, words: PromptWords, written: Sequence[int]) -> list[int]:
    constraint = CONSTRAINTS.get(grammar)
    for token_id in written:
        constraint = constraint.after(token_id)
    return words.continuation(constraint, written)


A_B = [FIRST["A"], SPACED["B"]]
C_D = [FIRST["C"], SPACED["D"]]
LOCATION = [2]


@pytest.mark.parametrize(
    ("grammar", "letters", "written", "expected"),
    [
        (LABELS, "XABYCD", [], A_B),
        (LABELS, "XABYCD", A_B[:1], A_B[1:]),
        (LABELS, "XABYCD", A_B, []),  # a location follows
        (LABELS, "XABYCD", A_B + LOCATION, C_D),
        (LABELS, "XAB", A_B + LOCATION, A_B),  # again, as no other label fits
        (LABELS, "XYZ", [], []),
        (LABELS, "", [], []),
        (FREE, "XABYCD", [], []),
        (FREE, "XABYCD", [FIRST["A"]], [SPACED["B"], SPACED["Y"], SPACED["C"]]),
        # the place not used yet
        (FREE, "XABAC", [FIRST["A"], SPACED["B"], *LOCATION, FIRST["A"]], [SPACED["C"]]),
        (FREE, "XA", [FIRST["A"]], []),
    ],
)
def test_words_of_the_prompt_that_continue_an_answer(
    grammar: str, letters: str, written: list[int], expected: list[int]
) -> None:
    assert continuation(grammar, prompt(letters), written) == expected


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([0, 0], [0, 0]),
        ([5], [5]),
        ([3, 3, 3, 3], [3, 3, 3, 3]),
        ([3, 0], [3, 0]),
        ([3, 0, 0], [0, 0, 0]),  # two wasted rows for each token
        ([6, 2, 2, 2], [2, 2, 2, 2]),
    ],
)
def test_drafts_are_cut_to_the_length_that_pays(lengths: list[int], expected: list[int]) -> None:
    decoder = FakeDecoder()
    requests = [request((5,) * length) for length in lengths]
    sequences = [start_sequence(one, decoder.rules) for one in requests]
    drafts = EagerEngine(decoder, 4).drafts(sequences)
    assert [len(draft) for draft in drafts] == expected


def test_shorter_drafts_are_padded_with_their_last_token_at_its_own_position() -> None:
    cache = SlotCache(FAKE_SHAPE, 5)
    cache.claim([[1], [2], [3]], [10, 20, 30], [None] * 3)
    places = cache.places([[4, 7, 8], [5], [6, 9]], first_slot=1)
    assert places.token_ids.tolist() == [[4, 7, 8], [5, 5, 5], [6, 9, 9]]
    assert places.positions.tolist() == [[10, 11, 12], [20, 20, 20], [30, 31, 31]]
    assert places.length == 32
    assert rows_of([(7, 8), (), (9,)]) == [range(3), range(3, 4), range(6, 8)]


ANY_TEXT = FakeDecoder().text.constraints.get("start: /[a-z]*/")
LIMITS = SchedulerLimits(num_slots=4, max_waiting=99, max_prefill_tokens=1000)
ANSWER = (5, 6, 7, 8, 9, 10)


def request(
    words: Sequence[int], answer: Sequence[int] = ANSWER, **options: object
) -> SequenceRequest:
    """Return a request whose prompt, and so its answer, is `answer`, and whose drafts come from
    `words`.
    """
    built = SequenceRequest(
        torch.zeros(2, 4), tuple(answer), max_new_tokens=16, constraint=ANY_TEXT
    )
    return replace(built, prompt_words=PromptWords(words, words), **options)  # type: ignore[arg-type]


def num_steps(decoder: FakeDecoder, *requests: SequenceRequest) -> int:
    """Return the number of steps after the prefill, and check that the answers are those without
    drafts.
    """
    plain = FakeDecoder(start_token_id=None, rules=decoder.rules)
    assert generate_all(decoder, requests) == generate_all(plain, requests, WithoutDrafts)
    assert plain.draft_widths == []
    return len(decoder.step_sizes)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (ANSWER, 0),  # read in the prefill, with the end token after it
        (ANSWER[:3], 3),
        ((5, 6, 20, 8), 4),  # the third is wrong, at every step
        ((20,), 6),
    ],
)
def test_a_right_draft_saves_its_steps(words: tuple[int, ...], expected: int) -> None:
    assert num_steps(FakeDecoder(), request(words)) == expected


def test_without_a_constraint_only_forced_tokens_are_drafted() -> None:
    rules = GenerationRules(frozenset({EOS}), forced_bos_token_id=5)
    decoder = FakeDecoder(rules=rules)
    assert num_steps(decoder, request(ANSWER, constraint=None)) == len(ANSWER) - 1
    assert decoder.draft_widths == []  # the forced token was read in the prefill


def test_a_draft_stays_within_max_new_tokens() -> None:
    for max_new_tokens in range(1, len(ANSWER) + 2):
        (written,) = generate_all(FakeDecoder(), [request(ANSWER, max_new_tokens=max_new_tokens)])
        assert written.token_ids == (*ANSWER, EOS)[:max_new_tokens]
        assert written.finish_reason == ("stop" if max_new_tokens > len(ANSWER) else "length")


def test_an_end_token_within_a_draft_ends_the_answer() -> None:
    assert num_steps(FakeDecoder(), request((5, 6, 7, 8, 9), answer=(5, 6))) == 0
    (written,) = generate_all(FakeDecoder(), [request((5, 6, 7, 8, 9), answer=(5, 6))])
    assert (written.token_ids, written.finish_reason) == ((5, 6, EOS), "stop")


def test_sampled_and_beam_sequences_are_not_drafted_beside_one_that_is() -> None:
    decoder = FakeDecoder(start_token_id=None)
    sampled = request(ANSWER, temperature=0.5, seed=1)
    beams = request(ANSWER, num_beams=2)
    num_steps(decoder, sampled, beams)
    assert decoder.draft_widths == []
    num_steps(decoder, request(ANSWER), sampled)
    assert decoder.draft_widths == [len(ANSWER)]  # once, then an end token is chosen
    num_steps(decoder, *[request(ANSWER)] * 3, beams)
    assert len(decoder.draft_widths) == 2


def test_many_sequences_are_not_drafted() -> None:
    decoder = FakeDecoder()
    assert num_steps(decoder, *[request(ANSWER)] * 9) == len(ANSWER)


def test_nan_within_a_draft_fails_its_sequence_only() -> None:
    decoder = FakeDecoder()
    scheduler = Scheduler(decoder, "fake", LIMITS)
    bad, good = scheduler.submit(
        [request((5, 6, 7), answer=(5, POISON, 7)), request((5, 6, 7), answer=(5, 6, 7))]
    )
    scheduler.start()
    scheduler.stop()
    assert good.result().sequence.token_ids == (5, 6, 7, EOS)
    with pytest.raises(SequenceError, check=is_failure("non_finite_logits"), match="token 1"):
        bad.result()


def test_a_listener_receives_a_draft_at_once() -> None:
    received: list[tuple[int, ...]] = []
    scheduler = Scheduler(FakeDecoder(start_token_id=None), "fake", LIMITS)
    (future,) = scheduler.submit(
        [request((6, 7, 8), on_tokens=lambda ids: received.append(tuple(ids)))]
    )
    scheduler.start()
    scheduler.stop()
    assert received == [(5,), (6, 7, 8, 9), (10,), (EOS,)]
    assert future.result().sequence.token_ids == (*ANSWER, EOS)

import pytest

from runners.transport.messages import Failed, Outcome, SequenceEnd, TextPiece, Written
from service.runner_client.stream_replay import ReplayDiverged, StreamReplay


def written(text: str) -> Written:
    return Written(
        text=text,
        token_ends=[],
        logprobs=[],
        finish_reason="stop",
        num_prompt_tokens=1,
        num_generated_tokens=1,
        queue_s=0,
        prefill_s=0,
        decode_s=0,
    )


def piece(index: int, text: str) -> TextPiece:
    return TextPiece(index=index, text=text)


def end(index: int, outcome: Outcome | str) -> SequenceEnd:
    return SequenceEnd(index=index, outcome=written(outcome) if isinstance(outcome, str) else outcome)


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([piece(0, "a"), piece(0, "b"), end(0, "ab"), end(1, "")], ["a", "b", "\n"]),
        ([piece(1, "x"), piece(0, "a"), end(1, "xy"), end(0, "a")], ["a", "\n", "xy"]),
        (
            [end(0, "at once"), piece(1, "x"), end(1, "x and rest")],
            ["at once", "\n", "x", " and rest"],
        ),
        ([end(0, ""), end(1, "")], ["\n"]),
        ([piece(0, "a")], ["a"]),
    ],
)
def test_what_comes_too_early_waits_for_its_turn(events: list[TextPiece | SequenceEnd], told: list[str]) -> None:
    heard: list[str] = []
    text = StreamReplay(2, heard.append)
    for event in events:
        text.receive(event)
    assert heard == told


def test_outcomes_are_in_the_order_of_the_sequences() -> None:
    text, failed = StreamReplay(2, print), Failed(code="overloaded", message="no")
    text.receive(end(1, failed))
    assert text.outcomes == [failed]
    text.receive(end(0, "a"))
    assert text.outcomes == [written("a"), failed]


@pytest.mark.parametrize(
    ("before", "again", "told"),
    [
        ([piece(0, "ab")], [piece(0, "a"), piece(0, "b"), piece(0, "c"), end(0, "abc"), end(1, "x")], "abc\nx"),
        ([piece(0, "ab")], [piece(0, "abc"), end(0, "abc"), end(1, "x")], "abc\nx"),
        ([end(0, "a"), piece(1, "x")], [end(1, "xy"), end(0, "a")], "a\nxy"),
        ([end(0, ""), piece(1, "x")], [end(0, ""), end(1, "x")], "\nx"),
        ([piece(1, "x")], [end(0, "a"), end(1, "z")], "a\nz"),  # what was heard and not told may be otherwise
    ],
)
def test_begun_again_nothing_is_told_twice(
    before: list[TextPiece | SequenceEnd], again: list[TextPiece | SequenceEnd], told: str
) -> None:
    heard: list[str] = []
    text = StreamReplay(2, heard.append)
    for event in before:
        text.receive(event)
    text.begin()
    for event in again:
        text.receive(event)
    assert "".join(heard) == told
    assert len(text.outcomes) == 2


@pytest.mark.parametrize(
    ("num_sequences", "again"), [(2, piece(0, "b")), (2, piece(0, "ac")), (2, end(0, "a")), (1, end(0, "a"))]
)
def test_another_text_than_the_one_told_is_an_error(num_sequences: int, again: TextPiece | SequenceEnd) -> None:
    text = StreamReplay(num_sequences, print)
    text.receive(piece(0, "ab"))
    text.begin()
    with pytest.raises(ReplayDiverged):
        text.receive(again)

import pytest

from service.runner_client.stream_replay import ReplayDiverged, StreamReplay
from wire.runner_messages import Failed, Outcome, SequenceEnd, TextPiece, Written


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
    return SequenceEnd(
        index=index, outcome=written(outcome) if isinstance(outcome, str) else outcome
    )


@pytest.mark.parametrize(
    ("events", "sent"),
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
def test_text_of_later_sequences_waits_for_earlier_ones(
    events: list[TextPiece | SequenceEnd], sent: list[str]
) -> None:
    received: list[str] = []
    replay = StreamReplay(2, received.append)
    for event in events:
        replay.receive(event)
    assert received == sent


def test_outcomes_are_in_the_order_of_the_sequences() -> None:
    replay = StreamReplay(2, print)
    failed = Failed(code="overloaded", message="no")
    replay.receive(end(1, failed))
    assert replay.outcomes == [failed]
    replay.receive(end(0, "a"))
    assert replay.outcomes == [written("a"), failed]


@pytest.mark.parametrize(
    ("first", "repeated", "sent"),
    [
        (
            [piece(0, "ab")],
            [piece(0, "a"), piece(0, "b"), piece(0, "c"), end(0, "abc"), end(1, "x")],
            "abc\nx",
        ),
        ([piece(0, "ab")], [piece(0, "abc"), end(0, "abc"), end(1, "x")], "abc\nx"),
        ([end(0, "a"), piece(1, "x")], [end(1, "xy"), end(0, "a")], "a\nxy"),
        ([end(0, ""), piece(1, "x")], [end(0, ""), end(1, "x")], "\nx"),
        # text received but not sent may differ
        ([piece(1, "x")], [end(0, "a"), end(1, "z")], "a\nz"),
    ],
)
def test_repeated_stream_sends_no_text_twice(
    first: list[TextPiece | SequenceEnd], repeated: list[TextPiece | SequenceEnd], sent: str
) -> None:
    received: list[str] = []
    replay = StreamReplay(2, received.append)
    for event in first:
        replay.receive(event)
    replay.begin()
    for event in repeated:
        replay.receive(event)
    assert "".join(received) == sent
    assert len(replay.outcomes) == 2


@pytest.mark.parametrize(
    ("num_sequences", "event"),
    [(2, piece(0, "b")), (2, piece(0, "ac")), (2, end(0, "a")), (1, end(0, "a"))],
)
def test_repeated_stream_with_other_text_raises(
    num_sequences: int, event: TextPiece | SequenceEnd
) -> None:
    replay = StreamReplay(num_sequences, print)
    replay.receive(piece(0, "ab"))
    replay.begin()
    with pytest.raises(ReplayDiverged):
        replay.receive(event)

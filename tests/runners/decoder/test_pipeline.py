"""The pass in flight: who is in it, and what the next one reads."""

from runners.decoder.batch import LaunchedPass, Pipeline
from runners.tokens.choice import NextInputs


def ahead(*sequences: str) -> LaunchedPass[str, str]:
    return LaunchedPass(
        "logits", len(sequences), {each: [row] for row, each in enumerate(sequences)}
    )


def test_a_pass_is_taken_once() -> None:
    pipeline = Pipeline[str, str]()
    assert pipeline.take() is None
    pipeline.put(launched := ahead("a", "b"))
    assert pipeline.take() is launched
    assert pipeline.take() is None


def test_a_dropped_sequence_is_rolled_back_once_and_the_others_stay() -> None:
    pipeline = Pipeline[str, str]()
    assert not pipeline.drop("a")
    pipeline.put(ahead("a", "b"))
    assert [pipeline.drop(each) for each in ("a", "a", "c")] == [True, False, False]
    assert ("a" in pipeline, "b" in pipeline) == (False, True)
    launched = pipeline.take()
    assert launched is not None
    assert (launched.rows, launched.num_rows) == ({"b": [1]}, 2)  # rows keep their numbers


def test_a_pass_without_sequences_is_not_chosen_for() -> None:
    pipeline = Pipeline[str, str]()
    pipeline.put(ahead("a"))
    assert pipeline.drop("a")
    assert pipeline.take() is None
    pipeline.put(ahead("a"))
    pipeline.clear()
    assert ("a" in pipeline, pipeline.take()) == (False, None)


def test_the_next_pass_reads_chosen_tokens_by_row_and_those_of_the_host_by_slot() -> None:
    running = LaunchedPass("logits", 6, {"moved": [4], "beams": [0, 1]})
    slots = {"moved": [1], "beams": [3, 0], "admitted": [2], "more beams": [4, 5]}
    last = {"admitted": [70], "more beams": [80, 81]}
    assert running.next_inputs(slots, last) == NextInputs(
        rows=[1, 4, None, 0, None, None],
        tokens=[0, 0, 70, 0, 80, 81],
        # beams that no row chooses for have the same keys: they stay
        parents={3: [3, 0], 0: [3, 0], 4: [4], 5: [5]},
    )

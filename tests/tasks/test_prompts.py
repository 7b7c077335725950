from tasks.prompts import PromptSegment, control, join_segments, plain


def test_neighbours_of_one_kind_are_merged() -> None:
    prompt = join_segments(plain("Locate "), plain("<loc_5>"), control("<loc_1>"), control("<loc_2>"), plain("?"))
    assert prompt == (
        PromptSegment("Locate <loc_5>", False),
        PromptSegment("<loc_1><loc_2>", True),
        PromptSegment("?", False),
    )


def test_empty_segments_are_left_out_and_do_not_separate() -> None:
    assert join_segments(plain("a"), control(""), plain("b"), plain("")) == (PromptSegment("ab", False),)

from tasks.prompts import PromptSegment, join_segments


def plain(text: str) -> PromptSegment:
    return PromptSegment(text, is_control=False)


def control(text: str) -> PromptSegment:
    return PromptSegment(text, is_control=True)


def test_neighbours_of_one_kind_are_merged() -> None:
    prompt = join_segments(
        plain("Locate "), plain("<loc_5>"), control("<loc_1>"), control("<loc_2>"), plain("?")
    )
    assert prompt == (
        plain("Locate <loc_5>"),
        control("<loc_1><loc_2>"),
        plain("?"),
    )


def test_empty_segments_are_left_out_and_do_not_separate() -> None:
    assert join_segments(plain("a"), control(""), plain("b"), plain("")) == (plain("ab"),)


def test_a_segment_is_plain_unless_it_is_marked_as_control() -> None:
    assert PromptSegment("<loc_1>") == plain("<loc_1>")

from loadtest.figures import table


def test_columns_after_the_first_are_right_aligned() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---:|\n| 1 | 2 |"

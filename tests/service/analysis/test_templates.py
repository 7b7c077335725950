"""An object's text fills a string as data."""

from service.analysis.templates import filled, used_names


def test_only_the_strings_of_parameters_are_filled() -> None:
    fields = {
        "task": "{label}",
        "labels": ["{label}", "a {label} {other}", 3],
        "question": "{text}? {label}",
        "region": [1, 2],
    }
    assert used_names(fields) == {"label", "text"}
    assert filled(fields, {"label": "cat", "text": "exit"}) == {
        "task": "{label}",
        "labels": ["cat", "a cat {other}", 3],
        "question": "exit? cat",
        "region": [1, 2],
    }


def test_a_filled_text_is_not_filled_again() -> None:
    fields = {"phrase": "{label}{text}"}
    texts = {"label": "{text}", "text": r"\1{label}<loc_1>"}
    assert filled(fields, texts) == {"phrase": r"{text}\1{label}<loc_1>"}
    assert fields == {"phrase": "{label}{text}"}

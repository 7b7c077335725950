import io

from export.progress import Progress


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO) -> str:
    with Progress("florence-2-base", 2, stream) as progress:
        progress.begin("writing the decoder's weights")
        progress.begin("making the vision encoders")
    return stream.getvalue()


def test_without_a_terminal_each_step_is_one_line_that_names_the_model() -> None:
    assert shown(io.StringIO()).splitlines() == [
        "florence-2-base: writing the decoder's weights (0 s)",
        "florence-2-base: making the vision encoders (0 s)",
    ]


def test_on_a_terminal_a_bar_names_the_step() -> None:
    text = shown(Terminal())
    assert "\r" in text
    assert "florence-2-base: making the vision encoders:  50%" in text
    assert "\n" not in text

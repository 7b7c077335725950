"""An id belongs to one key and one content, and cannot be guessed."""

from service.images.inputs import ID_CHARS, HandleIds, ImageHandle

IDS = HandleIds(b"secret")


def test_id_is_of_one_key_and_content() -> None:
    text = IDS.make("one", b"image")
    assert (text[:4], len(text)) == ("img_", ID_CHARS)
    assert text == IDS.make("one", b"image")
    assert len({text, IDS.make("two", b"image"), IDS.make("one", b"other")}) == 3
    assert HandleIds(b"another").make("one", b"image") != text
    assert IDS.name("one", ImageHandle(text)) == text[4:36]
    assert IDS.name("two", ImageHandle(text)) is None


def test_changed_id_is_invalid() -> None:
    text = IDS.make("one", b"image")
    others = ["", "img_", text[:-1], f"{text}0", text.upper(), f"{text}\n", "../../a"]
    for index in range(4, len(text)):
        digit = "0" if text[index] != "0" else "1"
        others.append(f"{text[:index]}{digit}{text[index + 1 :]}")
    assert {IDS.name("one", ImageHandle(other)) for other in others} == {None}

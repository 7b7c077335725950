"""An id belongs to one key and one content, and cannot be guessed."""

from service.images.inputs import ID_CHARS, HandleIds, ImageHandle

IDS = HandleIds(b"secret")


def test_the_same_bytes_of_a_key_have_the_same_id() -> None:
    made = IDS.make("one", b"image")
    assert made == IDS.make("one", b"image")
    assert len({made, IDS.make("two", b"image"), IDS.make("one", b"other")}) == 3
    assert HandleIds(b"another").make("one", b"image") != made
    assert (made[:4], len(made)) == ("img_", ID_CHARS)


def test_an_id_is_valid_for_its_key_alone() -> None:
    handle = ImageHandle(IDS.make("one", b"image"))
    assert IDS.name("one", handle) == handle.text[4:36]
    assert IDS.name("two", handle) is None


def test_a_changed_or_made_up_id_is_not_valid() -> None:
    text = IDS.make("one", b"image")
    changed = [
        f"{text[:index]}{'0' if text[index] != '0' else '1'}{text[index + 1 :]}"
        for index in range(4, len(text))
    ]
    for other in [
        *changed,
        "",
        "img_",
        text[:-1],
        f"{text}0",
        text.upper(),
        f"{text}\n",
        "../../a",
    ]:
        assert IDS.name("one", ImageHandle(other)) is None

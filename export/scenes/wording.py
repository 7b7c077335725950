"""The words of a scene: names, phrases and captions, exactly as the embedded checkpoints answer them."""

from collections.abc import Sequence

from export.scenes.scene import Scene

_NUMBER_WORDS = ("no", "one", "two", "three", "four")


def with_article(name: str) -> str:
    """Return `a red circle`, `an orange star`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def joined(phrases: Sequence[str]) -> str:
    """Return `a red circle, a blue square and an orange star`."""
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def object_phrases(scene: Scene) -> tuple[str, ...]:
    """Return `a red circle` for each object, left to right."""
    return tuple(with_article(scene_object.name) for scene_object in scene.objects)


def short_caption(scene: Scene) -> str:
    """Return the objects, then ` with text` if there is a word; only `text` where no object is."""
    objects, text = joined(object_phrases(scene)), "text" if scene.word else ""
    return " with ".join(part for part in (objects, text) if part)


def detailed_caption(scene: Scene) -> str:
    """Return the sentence with number, background, sizes and colours, and the one with the word."""
    shapes = f"{_NUMBER_WORDS[len(scene.objects)]} shape{'' if len(scene.objects) == 1 else 's'}"
    descriptions = joined([with_article(scene_object.description) for scene_object in scene.objects])
    listing = f": {descriptions}" if descriptions else ""
    text = f" The text says {scene.word.text}." if scene.word else ""
    return f"The image shows {shapes} on a {scene.background.brightness} background{listing}.{text}"

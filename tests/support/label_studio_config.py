"""Labelling configurations of Label Studio, and its run lengths read back."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.label_studio.mapping import Control, parse_config

IMAGE = '<Image name="image" value="$image"/>'


def view(*tags: str) -> str:
    return f"<View>{IMAGE}{''.join(tags)}</View>"


def labelled(tag: str, *labels: str, name: str = "box", attributes: str = "") -> str:
    child = "Choice" if tag == "Choices" else "Label"
    children = "".join(f'<{child} value="{label}"/>' for label in labels)
    return f'<{tag} name="{name}" toName="image" {attributes}>{children}</{tag}>'


def only_control(*tags: str) -> Control:
    (control,) = parse_config(view(*tags))
    return control


def basic_auth(password: str) -> dict[str, str]:
    credentials = base64.b64encode(f"diptych:{password}".encode()).decode()
    return {"Authorization": f"Basic {credentials}"}


def brush_pixels(rle: Sequence[int], shape_hw: tuple[int, int]) -> NDArray[Any]:
    """Return the RGBA pixels of run lengths, decoded bit by bit as rle-pack's `decode` does."""
    bits = "".join(map(str, np.unpackbits(np.array(rle, dtype=np.uint8))))
    at = 0

    def read(width: int) -> int:
        nonlocal at
        at += width
        return int(bits[at - width : at], 2)

    num = read(32)
    word_bits = read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < num:
        is_repeated = read(1)
        length = 1 + read(widths[read(2)])
        if is_repeated:
            out += [read(word_bits)] * length
        else:
            out += [read(word_bits) for _ in range(length)]
    return np.array(out, dtype=np.uint8).reshape(*shape_hw, 4)

"""Scenes that Chromium renders, not the renderer of training: emoji of several sizes on a page.

Scenes are stacked on one tall page, which is photographed once. Each emoji has a field of a grid to
itself, so that its visible part is what differs from the plain background there.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.random import default_rng
from PIL import Image

from export.scenes.scene import Brightness, Size
from laboratory.things.catalogue import THINGS, Thing
from laboratory.things.material import Material
from laboratory.things.scene import (
    RESOLUTION_PX,
    SCALE,
    PlacedThing,
    Pose,
    ThingBackground,
    ThingScene,
)

PAGE_PX = 2 * RESOLUTION_PX
_FIELDS = 3  # columns and rows
_FIELD_PX = PAGE_PX // _FIELDS
_SIZES_PX = (40, 130)  # font size
_LARGE_PX = 112  # longer side of a thing that counts as large, between training's two ranges
_GREYS = ((20, 60), (200, 245))
_MAX_DIFFERENCE = 24  # levels from the background's


@dataclass(frozen=True, slots=True)
class Screenshot:
    """A photographed scene without lines, and its image."""

    scene: ThingScene
    image: Image.Image


def take_screenshots(material: Material, first_seed: int, num: int) -> list[Screenshot]:
    """Return the scenes of `num` seeds; needs Chromium."""
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("no chromium here; apt-get install chromium-headless-shell")
    pages = [_page(seed, index) for index, seed in enumerate(range(first_seed, first_seed + num))]
    style = (
        f"@font-face{{font-family:E;src:url('{material.emoji_file.resolve().as_uri()}')}}"
        "body{margin:0}div{position:absolute;left:0;overflow:hidden}"
        "span{position:absolute;font-family:E;line-height:1}"
    )
    bodies = "".join(page.html for page in pages)
    with TemporaryDirectory() as folder:
        document = Path(folder) / "page.html"
        photograph = Path(folder) / "page.png"
        document.write_text(
            f"<!doctype html><meta charset=utf-8><style>{style}</style>{bodies}", encoding="utf-8"
        )
        subprocess.run(
            [
                chromium,
                "--no-sandbox",
                "--headless",
                "--hide-scrollbars",
                "--virtual-time-budget=5000",
                "--allow-file-access-from-files",
                f"--window-size={PAGE_PX},{PAGE_PX * num}",
                f"--screenshot={photograph}",
                document.as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        with Image.open(photograph) as opened:
            whole = opened.convert("RGB")
    shots = []
    for index, page in enumerate(pages):
        top = index * PAGE_PX
        image = whole.crop((0, top, PAGE_PX, top + PAGE_PX))
        shots.append(Screenshot(_scene(page, image), image))
    return shots


@dataclass(frozen=True, slots=True)
class _Page:
    seed: int
    grey: int
    things: dict[int, Thing]  # keyed by field
    html: str


def _page(seed: int, index: int) -> _Page:
    rng = default_rng((seed, 43))
    grey = int(rng.integers(*_GREYS[int(rng.integers(2))]))
    fields = rng.permutation(_FIELDS * _FIELDS)[: int(rng.integers(1, 7))].tolist()
    things = {}
    spans = []
    for field in sorted(fields):
        things[field] = THINGS[int(rng.integers(len(THINGS)))]
        size = int(rng.integers(*_SIZES_PX))
        # An emoji is about 1.25 times as wide as its font's size.
        free = max(1, _FIELD_PX - round(1.25 * size))
        left = field % _FIELDS * _FIELD_PX + int(rng.integers(free))
        top = field // _FIELDS * _FIELD_PX + int(rng.integers(free))
        style = f"left:{left}px;top:{top}px;font-size:{size}px"
        spans.append(f'<span style="{style}">{things[field].emoji}\ufe0f</span>')
    box = f"top:{index * PAGE_PX}px;width:{PAGE_PX}px;height:{PAGE_PX}px"
    background = f"background:rgb({grey},{grey},{grey})"
    return _Page(seed, grey, things, f'<div style="{box};{background}">{"".join(spans)}</div>')


def _scene(page: _Page, image: Image.Image) -> ThingScene:
    pixels = np.asarray(image.resize((RESOLUTION_PX, RESOLUTION_PX), Image.Resampling.BOX))
    is_ink = np.abs(pixels.astype(int) - page.grey).max(axis=2) > _MAX_DIFFERENCE
    placed = []
    for field, thing in page.things.items():
        left = round(field % _FIELDS * _FIELD_PX / 2)
        top = round(field // _FIELDS * _FIELD_PX / 2)
        side = _FIELD_PX // 2
        part = is_ink[top : top + side, left : left + side]
        rows = np.flatnonzero(part.any(axis=1))
        columns = np.flatnonzero(part.any(axis=0))
        visible = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        box = (
            (left + int(columns[0])) / SCALE,
            (top + int(rows[0])) / SCALE,
            (left + int(columns[-1]) + 1) / SCALE,
            (top + int(rows[-1]) + 1) / SCALE,
        )
        longer = 2 * max(visible.shape)
        pose = Pose(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), longer / 2, 0.0, False, 0, 1.0)
        size: Size = "large" if longer >= _LARGE_PX else "small"
        placed.append(PlacedThing(thing, thing.color, size, pose, 0, visible, box))
    placed.sort(key=lambda each: each.box_xyxy[0] + each.box_xyxy[2])
    grey = (page.grey,) * 3
    brightness: Brightness = "light" if page.grey > 127 else "dark"
    background = ThingBackground(brightness, "plain", grey, grey, 0)
    return ThingScene(page.seed, background, None, tuple(placed), ())

"""Kinds of images that calibrations notice as unlike theirs: `python -m laboratory.familiarity`.

Prints the share below `MIN_FAMILIARITY` of each kind, and the AUROC against scenes of no fit.
"""

import base64

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from export.checkpoints.bases import ROOT
from export.scenes import render_scene
from laboratory.scenes import PLAIN_PX, evaluation_scene
from runners.encoder.session import load_encoder
from tasks.scores import MIN_FAMILIARITY, read_calibrations
from tasks.tiles.grid import Grid, tile_boxes
from wire.artifacts.manifest import CALIBRATION_FILE, read_manifest
from wire.artifacts.model_store import artifact_folder


def main() -> None:
    kinds: dict[str, list[Image.Image]] = {}
    for index in range(400):
        scene = evaluation_scene(index)
        image = render_scene(scene, PLAIN_PX)
        levels = np.random.default_rng(index).integers(0, 256, (48, 48, 3), np.uint8)
        texture = Image.fromarray(levels).resize(image.size)
        kinds.setdefault("scenes of no fit", []).append(image)
        kinds.setdefault("with a texture", []).append(Image.blend(image, texture, 0.3))
        kinds.setdefault("inverted", []).append(ImageOps.invert(image))
        kinds.setdefault("blurred", []).append(image.filter(ImageFilter.GaussianBlur(6)))
        kinds.setdefault("of 22 px", []).append(render_scene(scene, 22))
    for path in sorted(ROOT.glob("models/photographs/*.jpg")):
        photograph = Image.open(path).convert("RGB")
        for box in tile_boxes(Grid(2, 2), photograph.size, 0.0):
            kinds.setdefault("photographs", []).append(photograph.crop(box))
    for model in ("florence-2-mini", "paligemma-mini"):
        encoder = load_encoder(artifact_folder(model))
        manifest = read_manifest(artifact_folder(model))
        statistics = read_calibrations(ROOT / "models" / model / CALIBRATION_FILE)[0].images
        assert statistics is not None
        references = np.ones(0)
        for kind, images in kinds.items():
            values = []
            for image in images:
                resized = image.resize(manifest.image_size_wh, manifest.resample)
                embedding = encoder.encode([np.asarray(resized)]).mean(dim=(0, 1)).numpy()
                values.append(
                    statistics.familiarity(base64.b64encode(embedding.tobytes()).decode())
                )
            familiarities = np.array(values, dtype=float)
            references = references if len(references) else familiarities[:, None]
            auroc = (familiarities < references).mean() + (familiarities == references).mean() / 2
            share = (familiarities < MIN_FAMILIARITY).mean()
            print(f"| {model} | {kind} | {share:.3f} | {auroc:.2f} |")


if __name__ == "__main__":
    main()

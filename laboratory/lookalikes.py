"""Simulates `diptych annotate --labelled` on things that are easily confused.

    python -m laboratory.lookalikes MATERIAL [--scenes N] [--draws N] [--labelled N] [--answers D]

The method is that of `laboratory/evaluation/guarantees.py`: the models of things find lions,
tigers, cars and taxis. MATERIAL is the folder of `python -m laboratory.things`.
"""

from collections.abc import Sequence
from pathlib import Path

from laboratory.evaluation.coco_scenes import write_coco
from laboratory.evaluation.guarantees import Asked, guarantee_parser, run
from laboratory.things import Material
from laboratory.things.calibration import ASKED, KNOWN_SHARES, scenes_of_all_sizes
from laboratory.things.catalogue import INDEX_OF, THINGS

_PLAIN = "plain"
_SEED = 10  # others fit calibrations and adapters


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate with scenes of look-alikes."""
    parser = guarantee_parser("python -m laboratory.lookalikes", __doc__ or "")
    parser.add_argument("material", type=Path, metavar="MATERIAL")
    parsed = parser.parse_args(arguments)
    material = Material(parsed.material)
    asked = Asked(
        models=("florence-2-things", "paligemma-things"),
        tasks=("open_vocabulary_detection",),
        conditions=(_PLAIN,),
        write=lambda folder, _, num_scenes: write_scenes(material, folder, num_scenes),
    )
    run(parsed, asked, {_PLAIN: (_PLAIN,)})


def write_scenes(material: Material, folder: Path, num_scenes: int) -> None:
    """Write images of look-alikes with their boxes in COCO's format."""
    things = [THINGS[INDEX_OF[name]] for name in ASKED]
    scenes = scenes_of_all_sizes(material, num_scenes, _SEED, things, KNOWN_SHARES)
    write_coco(folder, scenes, ASKED)


if __name__ == "__main__":
    main()

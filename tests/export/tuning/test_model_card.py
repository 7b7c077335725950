"""The README.md of an adapter."""

from datetime import date
from pathlib import Path

import yaml

from export.tuning.examples import Example
from export.tuning.held_out import HeldOutScore, SampleAnswer
from export.tuning.training import Epoch, TuningJob, TuningOptions, write_card
from tasks.parameters import TaskParameters
from tests.support.catalog import CATALOG

BASE = CATALOG["florence-2-base"]
OPTIONS = TuningOptions(2, 16, 1e-3, 8, 0.1, 0)
SHOWN = (SampleAnswer("Locate the cat", "cat<loc_1>", "dog<loc_1>"),)


def test_a_card_says_what_was_tuned_how_and_how_good_it_is(tmp_path: Path) -> None:
    score = HeldOutScore(0.5, 0.25, 0.75, 5, SHOWN)
    epochs = [Epoch(1, 2.0, 1.5, score), Epoch(2, 1.0, 3.0, HeldOutScore(0.9, 0.9, 0.9, 4, SHOWN))]
    output = tmp_path / "my-shapes"
    output.mkdir()
    lines = "  - id: my-shapes\n"
    example = Example(Path("a.png"), (), (), TaskParameters(), (9, 9))
    images = [[example, example]] + [[example]] * 38
    job = TuningJob(BASE, "object_detection", images, output, output / "run", OPTIONS)
    write_card(job, Path("data/my-labels"), "3 x image left out", epochs, lines)
    card = (output / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == BASE.source
    assert yaml.safe_load(header)["license"] == BASE.license
    for part in (
        "# my-shapes\n",
        f"for `object_detection`, tuned on {date.today()}.",
        "`my-labels`: 40 examples about 39 images; 3 x image left out. The share",
        "Epoch 1 of 2 is kept: held-out loss 1.5000, F1 0.500 [0.250, 0.750] of boxes at IoU 0.5",
        "on 5 held-out images",
        "- 'Locate the cat': expected 'cat<loc_1>', got 'dog<loc_1>'",
        "| learning_rate | 0.001 |",
        "`DIPTYCH_MODELS=florence-2-base DIPTYCH_ADAPTERS=FOLDER make serve`",
        "```yaml\n  - id: my-shapes\n```",
    ):
        assert part in text

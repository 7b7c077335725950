"""The lines of a run for people, and its curve."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from export.tuning.held_out import HeldOutScore, SampleAnswer
from export.tuning.training import (
    Epoch,
    best_epoch,
    draw_curve,
    duration,
    epoch_line,
    epochs_of,
    sample_line,
    score_text,
)

SCORE = HeldOutScore(0.5, 0.25, 0.75, 5, (SampleAnswer("caption en", "a star", "a circle"),))
EPOCHS = [Epoch(1, 2.0, 3.0, SCORE), Epoch(2, 1.0, 2.5, SCORE), Epoch(3, 0.5, 2.5, SCORE)]


def test_the_epochs_are_read_from_the_trainers_log() -> None:
    log: list[dict[str, Any]] = []
    for each in EPOCHS:
        log.append({"loss": each.loss, "epoch": float(each.number)})
        scored = {"eval_loss": each.held_out_loss, "epoch": float(each.number)}
        log.append({**scored, "score": asdict(each.score)})
    log.append({"train_loss": 1.0, "epoch": 3.0})
    assert epochs_of(log) == EPOCHS


def test_the_first_epoch_with_the_least_held_out_loss_is_kept() -> None:
    assert best_epoch(EPOCHS) is EPOCHS[1]


def test_a_line_has_losses_f1_and_time_left() -> None:
    line = epoch_line(EPOCHS[1], 3, is_best=True, left_s=120.0)
    numbers = "loss 1.0000, held out 2.5000, F1 0.500 [0.250, 0.750]"
    assert line == f"epoch 2 of 3: {numbers}, kept; 2 min left"
    assert epoch_line(EPOCHS[2], 3, is_best=False, left_s=0.0) == (
        "epoch 3 of 3: loss 0.5000, held out 2.5000, F1 0.500 [0.250, 0.750]"
    )


def test_few_images_have_no_interval() -> None:
    assert score_text(SCORE) == "F1 0.500 [0.250, 0.750]"
    assert score_text(replace(SCORE, num_images=4)) == "F1 0.500"


@pytest.mark.parametrize(
    ("seconds", "text"), [(99.4, "99 s"), (100.0, "2 min"), (5940.0, "99 min"), (9000.0, "2.5 h")]
)
def test_a_duration_has_a_fitting_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_long_answer_is_cut() -> None:
    line = sample_line(SampleAnswer("caption en", "a star", "a" * 500))
    assert line == f"'caption en': expected 'a star', got '{'a' * 100}…'"


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    draw_curve(EPOCHS, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (700, 400)
        colors = image.convert("RGB").getcolors(1 << 20)
    assert colors is not None
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= {color for _, color in colors}

"""`python -m export.tune` as a user runs it, on a few images."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from export.scenes import render_scene
from export.tune import INTERRUPTED, MAX_LINES, RUN_FOLDER, how_to_continue, main
from export.tuning.examples import Example
from export.tuning.held_out import HeldOutScore, SampleAnswer
from export.tuning.training import (
    CURVE_FILE,
    Epoch,
    TuningJob,
    TuningOptions,
    best_epoch,
    draw_curve,
    duration,
    epoch_line,
    epochs_of,
    sample_line,
    score_text,
    split,
    write_card,
)
from laboratory.scenes import evaluation_scene, labelled, write_coco
from runners.adapters.peft import read_adapter
from tasks.table import TaskParameters
from tests.support.catalog import CATALOG
from tests.support.export_cli import ROOT
from wire.artifacts.adapter_folder import AdapterLimits
from wire.artifacts.manifest import DECODER_FILE

TASKS = {"florence-2-mini": "object_detection", "paligemma-mini": "open_vocabulary_detection"}
TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, 4)
    return folder


def write_scenes(folder: Path, num_scenes: int) -> None:
    scenes = list(map(evaluation_scene, range(num_scenes)))
    write_coco(folder, [labelled(render_scene(scene), scene.objects) for scene in scenes])


def command(data: Path, model_id: str, output: Path, *options: str) -> list[str]:
    base = ["--base", model_id, "--task", TASKS[model_id], "--output", str(output)]
    return [str(data), *base, "--epochs", "4", "--batch-size", "2", *options]


def tune(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "export.tune", *arguments]
    return subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def stop_after_epochs(
    num_epochs: int, signal_number: signal.Signals, process: "subprocess.Popen[str]", run: Path
) -> str:
    """Return what a process that was stopped has printed."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while saved_epochs(run) < num_epochs:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    process.send_signal(signal_number)
    return process.communicate()[0]


def saved_epochs(run: Path) -> int:
    """Return the number of whole epochs of the newest checkpoint; older ones are deleted."""
    with suppress(FileNotFoundError):
        states = [path.read_text() for path in run.glob("checkpoint-*/trainer_state.json")]
        return max(map(int, re.findall(r'"epoch": (\d+)', "".join(states))), default=0)
    return 0


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Pass Ctrl-C on to children: they inherit that a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.long
@pytest.mark.usefixtures("interruptible")
def test_a_stopped_and_a_killed_run_resume_and_write_the_adapter_of_one_that_was_not(
    data: Path, model_id: str, artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    assert main(command(data, model_id, whole)) == 0
    whole_lines = capsys.readouterr().out.splitlines()
    run = killed / RUN_FOLDER

    stopped = tune(command(data, model_id, killed))
    printed = stop_after_epochs(1, signal.SIGINT, stopped, run)
    assert stopped.returncode == INTERRUPTED
    last = printed.splitlines()[-1]
    assert last.startswith("python -m export.tune: stopped; continue after the last whole epoch")
    again = shlex.split(last.partition("with: python -m export.tune ")[2])
    assert again == command(data, model_id, killed, "--resume")
    assert "Traceback" not in printed

    process = tune(again)
    stop_after_epochs(2, signal.SIGKILL, process, run)
    assert process.returncode == -signal.SIGKILL
    (run / "checkpoint-99999").mkdir()  # left by a process killed while it saves
    assert main(again) == 0
    printed = capsys.readouterr().out
    expected, resumed = (
        read_adapter(folder, artifacts / DECODER_FILE, AdapterLimits())
        for folder in (whole, killed)
    )
    torch.testing.assert_close(dict(resumed), dict(expected))
    assert any("fc1" in name or "gate_proj" in name for name in resumed)
    assert any(tensor.any() for name, tensor in resumed.items() if name.endswith("up"))
    assert not run.exists()
    (entry,) = yaml.safe_load(printed.partition(":\n\n")[2])
    assert entry.pop("forced_names", False) == (model_id == "paligemma-mini")  # asked for names
    assert entry == {"id": "killed", "adapter_of": model_id, "source": str(killed)}
    assert (
        json.loads((killed / "adapter_config.json").read_text())["base_model_name_or_path"]
        == f"models/{model_id}"
    )

    epochs = [line for line in whole_lines if line.startswith("epoch ")]
    assert len(epochs) == 4
    pattern = r"epoch 1 of 4: loss \S+, held out \S+, F1 \S+, kept; .* left"
    assert re.fullmatch(pattern, epochs[0])
    samples = [line for line in whole_lines if line.startswith("  '")]
    assert samples
    assert all("expected '" in line and "got '" in line for line in samples)
    cards = [(folder / "README.md").read_text() for folder in (whole, killed)]
    assert cards[0].replace("whole", "killed") == cards[1]
    assert (killed / CURVE_FILE).read_bytes().startswith(b"\x89PNG")


def test_a_stopped_command_is_continued_by_itself(tmp_path: Path) -> None:
    arguments = ["my data", "--resume"]
    assert (
        how_to_continue(arguments, tmp_path) == "the training had not begun, and nothing is saved"
    )
    (tmp_path / RUN_FOLDER).mkdir()
    printed = how_to_continue(arguments, tmp_path)
    assert printed.endswith("with: python -m export.tune 'my data' --resume")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err


def test_an_output_that_does_not_fit_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(data, "florence-2-mini", tmp_path)
    assert "has no interrupted run to resume" in refusal(capsys, *arguments, "--resume")
    (tmp_path / "README.md").write_text("mine")
    text = "has files that are not of an interrupted run; give"
    assert text in refusal(capsys, *arguments)
    (tmp_path / RUN_FOLDER).mkdir()
    assert "has an interrupted run; --resume continues it" in refusal(capsys, *arguments)
    (tmp_path / "adapter_config.json").touch()
    assert "already has an adapter" in refusal(capsys, *arguments)


def test_one_image_beside_damaged_ones_cannot_be_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_scenes(data, MAX_LINES + 2)
    _, *damaged = sorted((data / "images").iterdir())
    for path in damaged:
        path.write_bytes(b"no image")
    text = refusal(capsys, *command(data, "florence-2-mini", tmp_path / "out"))
    *named, counted, error = text.splitlines()
    for path, line in zip(damaged, named, strict=False):
        assert f"{path}: it cannot be read" in line
    assert (len(named), counted) == (MAX_LINES, "11 x image left out")
    assert "for 1 image; at least 2 are needed" in error
    assert not (tmp_path / "out").exists()


def test_other_bases_and_templates_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = tmp_path / "catalog.yaml"
    rows = (ROOT / "models" / "catalog.yaml").read_text()
    catalog.write_text(f"{rows}\n  - {{id: tuned, adapter_of: florence-2-mini, source: /tuned}}\n")
    monkeypatch.setenv("DIPTYCH_CATALOG", str(catalog))
    arguments = command(data, "florence-2-mini", tmp_path / "out")
    text = refusal(capsys, *arguments, "--base", "tuned")
    assert "--base tuned is an adapter; tune its base florence-2-mini" in text
    for template in ("<DocVQA>", "{question}"):
        text = refusal(capsys, *arguments, "--template", template)
        allowed = "allowed only for visual_question_answering"
        assert f"--template is {template!r}; {allowed}" in text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--task", "segmentation"), "invalid choice: 'segmentation'"),
        (("--held-out", "1"), "must be between 0 and 1, not 1"),
        (("--rank", "0"), "must be a whole number above 0, not 0"),
    ],
)
def test_an_option_out_of_its_range_is_refused(
    data: Path, option: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command(data, "florence-2-mini", Path("out")), *option])
    assert message in capsys.readouterr().err


SCORE = HeldOutScore(0.5, 0.25, 0.75, 5, (SampleAnswer("Locate the cat", "cat<loc_1>", "dog"),))
EPOCHS = [Epoch(1, 2.0, 3.0, SCORE), Epoch(2, 1.0, 2.5, SCORE), Epoch(3, 0.5, 2.5, SCORE)]
NUMBERS = "held out 2.5000, F1 0.500 [0.250, 0.750]"


def test_epochs_are_read_from_the_trainers_log() -> None:
    log: list[dict[str, Any]] = []
    for epoch in EPOCHS:
        log.append({"loss": epoch.loss, "epoch": float(epoch.number)})
        row = {"eval_loss": epoch.held_out_loss, "epoch": float(epoch.number)}
        log.append({**row, "score": asdict(epoch.score)})
    log.append({"train_loss": 1.0, "epoch": 3.0})
    assert epochs_of(log) == EPOCHS
    assert best_epoch(EPOCHS) is EPOCHS[1]


def test_a_line_has_losses_f1_and_time_left() -> None:
    line = epoch_line(EPOCHS[1], 3, is_best=True, left_s=120.0)
    assert line == f"epoch 2 of 3: loss 1.0000, {NUMBERS}, kept; 2 min left"
    line = epoch_line(EPOCHS[2], 3, is_best=False, left_s=0.0)
    assert line == f"epoch 3 of 3: loss 0.5000, {NUMBERS}"
    assert score_text(replace(SCORE, num_images=4)) == "F1 0.500"
    durations = [duration(seconds) for seconds in (99.4, 100.0, 5940.0, 9000.0)]
    assert durations == ["99 s", "2 min", "99 min", "2.5 h"]
    line = sample_line(SampleAnswer("caption en", "a" * 100, "b" * 101))
    assert line == f"'caption en': expected '{'a' * 100}', got '{'b' * 100}…'"


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    draw_curve(EPOCHS, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (700, 400)
        colors = image.convert("RGB").getcolors(1 << 20) or []
    lines = {(31, 119, 180), (255, 127, 14), (44, 160, 44)}
    assert lines <= {color for _, color in colors}


def test_a_card_has_data_quality_recipe_and_entry(tmp_path: Path) -> None:
    output = tmp_path / "my-shapes"
    output.mkdir()
    example = Example(Path("a.png"), (), (), TaskParameters(), (9, 9))
    images = [[example, example], *[[example]] * 38]
    options = TuningOptions(3, 16, 1e-3, 8, 0.1, 0)
    base = CATALOG["florence-2-base"]
    job = TuningJob(base, "object_detection", images, output, output / "run", options)
    entry_lines = "  - id: my-shapes\n"
    write_card(job, Path("data/my-labels"), "3 x image left out", EPOCHS, entry_lines)
    card = (output / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == base.source
    assert yaml.safe_load(header)["license"] == base.license
    for part in (
        "# my-shapes\n",
        f"for `object_detection`, tuned on {date.today()}.",
        "`my-labels`: 40 examples about 39 images; 3 x image left out. The share 0.1 of",
        "Epoch 2 of 3 is kept: held-out loss 2.5000, F1 0.500 [0.250, 0.750] of boxes at IoU 0.5",
        "on 5 held-out images",
        "- 'Locate the cat': expected 'cat<loc_1>', got 'dog'",
        "| learning_rate | 0.001 |",
        "`DIPTYCH_MODELS=florence-2-base DIPTYCH_ADAPTERS=FOLDER make serve`",
        "```yaml\n  - id: my-shapes\n```",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("num_images", "share", "num_held_out"), [(2, 0.9, 1), (2, 0.01, 1), (20, 0.1, 2)]
)
def test_some_images_are_held_out_whole(num_images: int, share: float, num_held_out: int) -> None:
    images = []
    for index in range(num_images):
        example = Example(Path(str(index)), (), (), TaskParameters(), (9, 9))
        images.append([example, example])
    held_out, trained = split(images, TuningOptions(1, 1, 1e-3, 1, share, 0))
    held_out_paths = {example.image for example in held_out}
    assert (len(held_out_paths), len(held_out)) == (num_held_out, 2 * num_held_out)
    assert held_out_paths.isdisjoint(example.image for example in trained)
    assert len(trained) == 2 * (num_images - num_held_out)

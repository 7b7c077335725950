"""`python -m export.tune` as a user runs it, on a few images."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from export.scenes import render_scene
from export.tune import INTERRUPTED, MAX_LINES, RUN_FOLDER, checkpoint_to_resume, main
from export.tuning.examples import Example
from export.tuning.training import (
    Epoch,
    TuningJob,
    TuningOptions,
    best_epoch,
    epochs_of,
    split,
    write_card,
)
from laboratory.scenes import evaluation_scene, labelled, write_coco
from runners.adapters.peft import read_adapter
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


def interrupt_twice(data: Path, model_id: str, output: Path) -> None:
    """Stop a run after an epoch, and kill it after the next."""
    run = output / RUN_FOLDER
    stopped = tune(command(data, model_id, output))
    printed = stop_after_epochs(1, signal.SIGINT, stopped, run)
    assert stopped.returncode == INTERRUPTED
    assert "python -m export.tune: stopped; --resume continues" in printed
    assert "Traceback" not in printed
    process = tune(command(data, model_id, output, "--resume"))
    stop_after_epochs(2, signal.SIGKILL, process, run)
    assert process.returncode == -signal.SIGKILL
    (run / "checkpoint-99999").mkdir()  # left by a process killed while it saves


@pytest.mark.long
@pytest.mark.usefixtures("interruptible")
def test_a_stopped_and_a_killed_run_resume_and_write_the_adapter_of_one_that_was_not(
    data: Path, model_id: str, artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    assert main(command(data, model_id, whole)) == 0
    capsys.readouterr()
    interrupt_twice(data, model_id, killed)
    assert main(command(data, model_id, killed, "--resume")) == 0
    printed = capsys.readouterr().out
    expected, resumed = (
        read_adapter(folder, artifacts / DECODER_FILE, AdapterLimits())
        for folder in (whole, killed)
    )
    torch.testing.assert_close(dict(resumed), dict(expected))
    assert any("fc1" in name or "gate_proj" in name for name in resumed)
    assert any(tensor.any() for name, tensor in resumed.items() if name.endswith("up"))
    assert not (killed / RUN_FOLDER).exists()
    (entry,) = yaml.safe_load(printed.partition(":\n\n")[2])
    assert entry.pop("forced_names", False) == (model_id == "paligemma-mini")  # asked for names
    assert entry == {"id": "killed", "adapter_of": model_id, "source": str(killed)}
    config = json.loads((killed / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"models/{model_id}"

    cards = [(folder / "README.md").read_text() for folder in (whole, killed)]
    assert cards[0].replace("whole", "killed") == cards[1]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err


def test_an_output_with_files_is_not_touched(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(data, "florence-2-mini", tmp_path)
    assert "has no interrupted run to resume" in refusal(capsys, *arguments, "--resume")
    (tmp_path / "README.md").write_text("mine")
    assert "has files; give another --output" in refusal(capsys, *arguments)
    checkpoint = tmp_path / RUN_FOLDER / "checkpoint-10"
    checkpoint.mkdir(parents=True)
    assert checkpoint_to_resume(tmp_path, resume=True) is None  # incomplete
    (checkpoint / "trainer_state.json").touch()
    assert checkpoint_to_resume(tmp_path, resume=True) == str(checkpoint)
    assert checkpoint_to_resume(tmp_path, resume=False, overwrite=True) is None
    assert not checkpoint.exists()


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


EPOCHS = [Epoch(1, 2.0, 3.0), Epoch(2, 1.0, 2.5), Epoch(3, 0.5, 2.5)]


def test_epochs_are_read_from_the_trainers_log() -> None:
    log: list[dict[str, Any]] = []
    for epoch in EPOCHS:
        log.append({"loss": epoch.loss, "epoch": float(epoch.number)})
        log.append({"eval_loss": epoch.held_out_loss, "epoch": float(epoch.number)})
    log.append({"train_loss": 1.0, "epoch": 3.0})
    assert epochs_of(log) == EPOCHS
    assert best_epoch(EPOCHS) is EPOCHS[1]


def test_card_has_base_losses_and_options(tmp_path: Path) -> None:
    base = CATALOG["florence-2-base"]
    options = TuningOptions(3, 16, 1e-3, 8, 0.1, 0)
    job = TuningJob(base, "object_detection", [], tmp_path, tmp_path / "run", options)
    write_card(job, Path("data/my-labels"), EPOCHS)
    _, header, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == base.source
    assert yaml.safe_load(header)["license"] == base.license
    for part in ("tuned on `my-labels`. Epoch 2 is kept", "| 2 | 1.0000 | 2.5000 |", "rank 16"):
        assert part in text


@pytest.mark.parametrize(
    ("num_images", "share", "num_held_out"), [(2, 0.9, 1), (2, 0.01, 1), (20, 0.1, 2)]
)
def test_some_images_are_held_out_whole(num_images: int, share: float, num_held_out: int) -> None:
    images = []
    for index in range(num_images):
        example = Example(Path(str(index)), (), ())
        images.append([example, example])
    held_out, trained = split(images, TuningOptions(1, 1, 1e-3, 1, share, 0))
    held_out_paths = {example.image for example in held_out}
    assert (len(held_out_paths), len(held_out)) == (num_held_out, 2 * num_held_out)
    assert held_out_paths.isdisjoint(example.image for example in trained)
    assert len(trained) == 2 * (num_images - num_held_out)

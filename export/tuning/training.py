"""LoRA training with PEFT and transformers' Trainer, which checkpoints every epoch and keeps the
best.

Only attention and feed-forward layers of the language model are adapted: image features, and so the
features cache of a runner, stay those of the base. The numbers of an epoch are in the trainer's
log, which each checkpoint has: a resumed run knows those before it.
"""

import importlib.metadata
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from export.checkpoints.tensors import load_checkpoint
from export.checks.reference import load_processor
from export.errors import ExportError
from export.tuning.batches import Batches
from export.tuning.examples import Example
from export.tuning.held_out import HeldOut, HeldOutScore, SampleAnswer
from tasks.catalog import CatalogEntry
from tasks.table import TASKS

TARGET_LAYERS = r".*language_model.*\.([qkvo]_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj)"
CURVE_FILE = "curve.png"
_ALPHA_FACTOR = 2  # alpha of a rank
_WARM_UP_SHARE = 0.05
_SCORE = "score"  # in the trainer's log
_MAX_TEXT_CHARS = 100
_MIN_IMAGES = 5  # resampling fewer gives an interval that is far too narrow


@dataclass(frozen=True, slots=True)
class TuningOptions:
    """The hyperparameters of a run."""

    num_epochs: int
    rank: int
    learning_rate: float
    batch_size: int
    held_out_share: float  # share of the images
    seed: int


@dataclass(frozen=True, slots=True)
class TuningJob:
    """One adapter to train: its base, examples, folders and hyperparameters."""

    entry: CatalogEntry  # the base's
    task_id: str
    images: Sequence[Sequence[Example]]  # the examples of each image
    output: Path
    run_folder: Path  # of the trainer's checkpoints, removed at the end
    options: TuningOptions


@dataclass(frozen=True, slots=True)
class Epoch:
    """Mean losses of an epoch, and the score after it."""

    number: int
    loss: float
    held_out_loss: float
    score: HeldOutScore


def tune(job: TuningJob, base: Path, checkpoint: str | None) -> list[Epoch]:
    """Train an adapter of the checkpoint `base` and write it to the output with its curve.

    Return the epochs; the adapter is that of `best_epoch`. A run continues at `checkpoint`. Raise
    `ExportError`.
    """
    options = job.options
    held_out, trained = split(job.images, options)
    job.run_folder.mkdir(parents=True, exist_ok=True)
    has_cuda = torch.cuda.is_available()
    model = load_checkpoint(base, torch.bfloat16 if has_cuda else torch.float32)
    model.config.use_cache = False
    batches = Batches(model, load_processor(base), base)
    tuned = with_adapter(model, job.entry.source, options)
    scorer = HeldOut(job.entry, job.task_id, batches, held_out)
    # torch's datasets are what has a length and items
    trained_rows: Any = [batches.tokenized(example) for example in trained]
    held_out_rows: Any = [batches.tokenized(example) for example in held_out]
    trainer = Trainer(
        model=tuned,
        args=_arguments(job.run_folder, options, has_cuda),
        train_dataset=trained_rows,
        eval_dataset=held_out_rows,
        data_collator=batches.stack,
        callbacks=[EpochReport(partial(scorer.score, options.batch_size))],
    )
    trainer.remove_callback(PrinterCallback)
    if sys.stderr.isatty():
        trainer.add_callback(Bar)
    trainer.train(resume_from_checkpoint=checkpoint)
    tuned.save_pretrained(str(job.output))  # the best, which the trainer has loaded
    epochs = epochs_of(trainer.state.log_history)
    draw_curve(epochs, job.output / CURVE_FILE)
    shutil.rmtree(job.run_folder)
    return epochs


def split(
    images: Sequence[Sequence[Example]], options: TuningOptions
) -> tuple[list[Example], list[Example]]:
    """Return held-out examples and the others; all examples of an image are on one side."""
    if len(images) < 2:
        raise ExportError(
            f"the dataset has labels of the task for {len(images)} image; at least 2 are needed"
        )
    shuffled = random.Random(options.seed).sample(images, len(images))
    num_held_out = min(max(1, round(len(images) * options.held_out_share)), len(images) - 1)
    held_out = chain.from_iterable(shuffled[:num_held_out])
    return list(held_out), list(chain.from_iterable(shuffled[num_held_out:]))


def with_adapter(model: Any, source: str, options: TuningOptions) -> Any:
    torch.manual_seed(options.seed)
    config = LoraConfig(
        r=options.rank, lora_alpha=_ALPHA_FACTOR * options.rank, target_modules=TARGET_LAYERS
    )
    # transformers 5.24 says that peft 0.21 reads `is_gradient_checkpointing`
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        tuned = get_peft_model(model, config)
    # PEFT takes the folder of this host
    tuned.peft_config["default"].base_model_name_or_path = source
    return tuned


def _arguments(folder: Path, options: TuningOptions, has_cuda: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.num_epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=_WARM_UP_SHARE,
        weight_decay=0.0,
        bf16=has_cuda,
        dataloader_pin_memory=has_cuda,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,  # the best and the last
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        label_names=["labels"],
        remove_unused_columns=False,  # the collator reads examples, not columns
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
    )


class Bar(ProgressCallback):
    """The trainer's bar without its lines."""

    def on_log(self, *_arguments: Any, **_named: Any) -> None:
        """Print nothing."""


class EpochReport(TrainerCallback):
    """Scores each epoch after its evaluation, adds it to the trainer's log, and prints a line."""

    def __init__(self, score: Callable[[], HeldOutScore]) -> None:
        self._score = score
        self._start_s = 0.0
        self._first_step = 0

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_named: Any,
    ) -> None:
        self._start_s = time.monotonic()
        self._first_step = state.global_step

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_named: Any,
    ) -> None:
        row: dict[str, Any] = state.log_history[-1]
        row[_SCORE] = asdict(self._score())
        epoch = epochs_of(state.log_history)[-1]
        is_best = state.best_metric is None or epoch.held_out_loss < state.best_metric
        step_s = (time.monotonic() - self._start_s) / (state.global_step - self._first_step)
        left_s = step_s * (state.max_steps - state.global_step)
        tqdm.write(epoch_line(epoch, int(args.num_train_epochs), is_best, left_s), sys.stdout)
        if is_best:
            for sample in epoch.score.samples:
                tqdm.write(f"  {sample_line(sample)}", sys.stdout)
        sys.stdout.flush()


def epochs_of(log: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """Return the scored epochs of a trainer's log."""
    epochs = []
    loss = float("nan")
    for row in log:
        loss = row.get("loss", loss)
        if _SCORE in row:
            samples = tuple(SampleAnswer(**sample) for sample in row[_SCORE]["samples"])
            score = HeldOutScore(**{**row[_SCORE], "samples": samples})
            epochs.append(Epoch(round(row["epoch"]), loss, row["eval_loss"], score))
    return epochs


def best_epoch(epochs: Sequence[Epoch]) -> Epoch:
    """Return the first epoch with the least held-out loss, which the trainer keeps."""
    return min(epochs, key=lambda epoch: epoch.held_out_loss)


def epoch_line(epoch: Epoch, num_epochs: int, is_best: bool, left_s: float) -> str:
    best = ", kept" if is_best else ""
    left = f"; {duration(left_s)} left" if epoch.number < num_epochs else ""
    return (
        f"epoch {epoch.number} of {num_epochs}: loss {epoch.loss:.4f}, held out"
        f" {epoch.held_out_loss:.4f}, {score_text(epoch.score)}{best}{left}"
    )


def score_text(score: HeldOutScore) -> str:
    interval = f" [{score.low:.3f}, {score.high:.3f}]"
    return f"F1 {score.f1:.3f}{interval if score.num_images >= _MIN_IMAGES else ''}"


def sample_line(sample: SampleAnswer) -> str:
    texts = []
    for text in (sample.prompt, sample.expected, sample.answer):
        ellipsis = "…" if len(text) > _MAX_TEXT_CHARS else ""
        texts.append(repr(f"{text[:_MAX_TEXT_CHARS]}{ellipsis}"))
    return f"{texts[0]}: expected {texts[1]}, got {texts[2]}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def draw_curve(epochs: Sequence[Epoch], file: Path) -> None:
    """Draw losses and F1 by epoch, with the best one marked."""
    numbers = [epoch.number for epoch in epochs]
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    losses.plot(numbers, [epoch.loss for epoch in epochs], "o-", label="loss, trained")
    losses.plot(numbers, [epoch.held_out_loss for epoch in epochs], "o-", label="loss, held out")
    losses.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses.axvline(best_epoch(epochs).number, color="grey", linestyle=":", label="kept")
    f1 = losses.twinx()
    scores = [epoch.score for epoch in epochs]
    f1.plot(numbers, [score.f1 for score in scores], "s--", color="C2", label="F1, held out")
    low = [score.low for score in scores]
    high = [score.high for score in scores]
    f1.fill_between(numbers, low, high, color="C2", alpha=0.15)
    f1.set(ylabel="F1", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=4)
    figure.savefig(file, dpi=100)


_CARD = """\
---
{header}---
# {name}

A LoRA adapter of `{base.id}` ({base.source}) for `{job.task_id}`, tuned on {today}.

## Data

`{data}`: {num_examples} examples about {num_images} images; {left_out}. The share \
{options.held_out_share} of the images was held out.

## Quality

Epoch {epoch.number} of {options.num_epochs} is kept: held-out loss {epoch.held_out_loss:.4f}, \
{score} of {measure}, with its 95 % interval from 5 images on, on {epoch.score.num_images} \
held-out images. The epoch was chosen on them: measure on other images with `diptych evaluate`.

{samples}

![Losses and F1 by epoch]({curve})

## Recipe

| option | value |
|---|---|
{recipe}

{versions}.

## Serve

Put this folder into FOLDER and start Diptych with \
`DIPTYCH_MODELS={base.id} DIPTYCH_ADAPTERS=FOLDER make serve`. Or add to `models/catalog.yaml`, \
export and serve both:

```yaml
{entry_lines}
```
"""


def write_card(
    job: TuningJob, data: Path, left_out: str, epochs: Sequence[Epoch], entry_lines: str
) -> None:
    """Write the card in place of PEFT's, which has the same name and is empty."""
    base = job.entry
    options = job.options
    epoch = best_epoch(epochs)
    header = {
        "base_model": base.source,
        "library_name": "peft",
        "license": base.license,
        "pipeline_tag": "image-text-to-text",
        "tags": ["lora", job.task_id],
    }
    names = [field.name for field in fields(options)]
    packages = ("peft", "torch", "transformers")
    card = _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        name=job.output.resolve().name,
        base=base,
        job=job,
        today=date.today(),
        data=data.name,
        num_examples=sum(map(len, job.images)),
        num_images=len(job.images),
        left_out=left_out or "nothing left out",
        options=options,
        epoch=epoch,
        score=score_text(epoch.score),
        measure=("boxes at IoU 0.5" if TASKS[job.task_id].result_kind == "detections" else "words"),
        samples="\n".join(f"- {sample_line(sample)}" for sample in epoch.score.samples),
        curve=CURVE_FILE,
        recipe="\n".join(f"| {name} | {getattr(options, name)} |" for name in names),
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        entry_lines=entry_lines.rstrip(),
    )
    (job.output / "README.md").write_text(card, encoding="utf-8")

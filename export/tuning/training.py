"""LoRA training with PEFT and transformers' Trainer, which checkpoints every epoch and keeps the
best.

Only attention and feed-forward layers of the language model are adapted: image features, and so the
features cache of a runner, stay those of the base.
"""

import random
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, Trainer, TrainingArguments

from export.artifacts.decoder_weights import load_checkpoint
from export.checkpoints.errors import TuningError
from export.checks.reference import load_processor
from export.tuning.batches import Batches
from export.tuning.epochs import Bar, Epoch, EpochReport, draw_curve, epochs_of
from export.tuning.examples import Example
from export.tuning.held_out import HeldOut
from export.tuning.run_folder import RUN_FOLDER
from tasks.catalog import CatalogEntry

TARGET_LAYERS = r".*language_model.*\.([qkvo]_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj)"
CURVE_FILE = "curve.png"
_ALPHA_FACTOR = 2  # alpha of a rank
_WARM_UP_SHARE = 0.05


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
    """One adapter to train: its base, examples, output and hyperparameters."""

    entry: CatalogEntry  # the base's
    task_id: str
    images: Sequence[Sequence[Example]]  # the examples of each image
    output: Path
    options: TuningOptions


def tune(job: TuningJob, base: Path, checkpoint: str | None) -> list[Epoch]:
    """Train an adapter of the checkpoint `base` and write it to the output with its curve.

    Return the epochs; the adapter is that of `kept_epoch`. A run continues at `checkpoint`. Raise
    `TuningError`.
    """
    options = job.options
    output = job.output
    held_out, trained = split(job.images, options)
    (output / RUN_FOLDER).mkdir(parents=True, exist_ok=True)
    has_cuda = torch.cuda.is_available()
    model = load_checkpoint(base, torch.bfloat16 if has_cuda else torch.float32)
    model.config.use_cache = False
    batches = Batches(model, load_processor(base), base)
    tuned = with_adapter(model, job.entry.source, options)
    scorer = HeldOut(job.entry.family, job.task_id, batches, held_out)
    # torch's datasets are what has a length and items
    trained_rows: Any = [batches.tokenized(example) for example in trained]
    held_out_rows: Any = [batches.tokenized(example) for example in held_out]
    trainer = Trainer(
        model=tuned,
        args=_arguments(output / RUN_FOLDER, options, has_cuda),
        train_dataset=trained_rows,
        eval_dataset=held_out_rows,
        data_collator=batches.stack,
        callbacks=[EpochReport(partial(scorer.score, options.batch_size))],
    )
    trainer.remove_callback(PrinterCallback)
    if sys.stderr.isatty():
        trainer.add_callback(Bar)
    trainer.train(resume_from_checkpoint=checkpoint)
    tuned.save_pretrained(str(output))  # the best, which the trainer has loaded
    epochs = epochs_of(trainer.state.log_history)
    draw_curve(epochs, output / CURVE_FILE)
    shutil.rmtree(output / RUN_FOLDER)
    return epochs


def split(
    images: Sequence[Sequence[Example]], options: TuningOptions
) -> tuple[list[Example], list[Example]]:
    """Return held-out examples and the others; all examples of an image are on one side."""
    if len(images) < 2:
        raise TuningError(
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

r"""LoRA training with PEFT and transformers' Trainer, which checkpoints every epoch and keeps the
best.

Only attention and feed-forward layers of the language model are adapted: image features, and so the
features cache of a runner, stay those of the base. The losses of an epoch are in the trainer's log,
which each checkpoint has: a resumed run knows those before it.

Images are prepared by the code that serves them, prompts by the runner's tokenizer:

Florence-2   inputs `image… <s> prompt </s>`                   labels `<s> answer </s>`
PaliGemma    inputs `image… <bos> prompt \n answer <eos>`     labels of the answer and `<eos>` only

The vision tower is frozen, so that the features of an image are computed once, without its dropout.
Shapes: B batch, N image tokens, S prompt or sequence (padded on the right), T answer (padded), C
hidden.
"""

import importlib.metadata
import random
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments

from export.artifacts.vision_module import ImageInput, read_image_input
from export.checkpoints.tensors import load_checkpoint
from export.checks.reference import load_processor
from export.errors import ExportError
from export.tuning.examples import Example
from imaging.containers import ImageError
from imaging.files import read_image, resize
from runners.tokens.text import PromptTokenizer
from tasks.catalog import CatalogEntry
from tasks.prompts import Prompt
from wire.artifacts.manifest import TOKENIZER_FILE

TARGET_LAYERS = r".*language_model.*\.([qkvo]_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj)"
NO_LABEL = -100  # transformers' losses ignore it: marks tokens outside the answer
_LINE_BREAK = ("\n", False)
# Features of further images are computed in every epoch.
_MAX_CACHED_BYTES = 4e9
_ALPHA_FACTOR = 2  # alpha of a rank
_WARM_UP_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """The token ids of an example, without those of the image."""

    image: Path
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


class Batches:
    """Tokenizes the examples of one checkpoint and stacks them as inputs of its forward pass."""

    def __init__(self, model: Any, processor: Any, folder: Path) -> None:
        self._model = model
        self._embed = model.get_input_embeddings()
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._image_processor = processor.image_processor
        self._image_input: ImageInput = read_image_input(processor.image_processor)
        self._tokenizer = PromptTokenizer.load(folder / TOKENIZER_FILE)
        special = processor.tokenizer
        self._bos_id = special.bos_token_id
        self._eos_id = special.eos_token_id
        self._pad_id = special.pad_token_id
        self._features: dict[Path, Tensor] = {}
        self._num_cached_bytes = 0
        blank = self._pixel_values(Image.new("RGB", self._image_input.size_wh))
        self._num_image_tokens = self._encode(blank).shape[1]

    def tokenized(self, example: Example) -> TokenizedExample:
        """Return the ids; raise `ExportError` if they exceed the model's positions."""
        prompt = (self._bos_id, *self._encoded(example.prompt))
        answer = (*self._encoded(example.answer), self._eos_id)
        if self._is_encoder_decoder:
            ids = TokenizedExample(example.image, (*prompt, self._eos_id), (self._bos_id, *answer))
            longest = max(self._num_image_tokens + len(ids.prompt_ids), len(ids.answer_ids))
        else:
            line_break = self._tokenizer.encode([_LINE_BREAK])
            ids = TokenizedExample(example.image, (*prompt, *line_break), answer)
            longest = self._num_image_tokens + len(ids.prompt_ids) + len(ids.answer_ids)
        if longest > (limit := self._model.config.text_config.max_position_embeddings):
            raise ExportError(
                f"{example.image}: image, prompt and answer need {longest} positions; the model has"
                f" {limit}"
            )
        return ids

    @torch.no_grad()
    def stack(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        features, input_rows, attention, labels, types = [], [], [], [], []
        for example in examples:
            features.append(self._image_features(example.image))
            row_ids, row_labels, row_types = self._row(example)
            input_rows.append(row_ids)
            attention.append(torch.ones(self._num_image_tokens + len(row_ids)))
            labels.append(row_labels)
            types.append(row_types)
        image_features = torch.stack(features)  # (B, N, C)
        input_ids = pad_sequence(input_rows, True, self._pad_id).to(image_features.device)
        batch = {
            "inputs_embeds": torch.cat(
                [image_features, self._embed(input_ids)], dim=1
            ),  # (B, N + S, C)
            "attention_mask": pad_sequence(attention, True).long(),  # (B, N + S)
            # (B, T), PaliGemma's (B, N + S)
            "labels": pad_sequence(labels, True, NO_LABEL),
        }
        if not self._is_encoder_decoder:  # 0: image and prompt, which see each other; 1: the answer
            batch["token_type_ids"] = pad_sequence(types, True, 1)
        return batch

    def _row(self, example: TokenizedExample) -> tuple[Tensor, Tensor, Tensor]:
        """Return input ids without the image's, labels and token types."""
        prompt = torch.tensor(example.prompt_ids)
        answer = torch.tensor(example.answer_ids)
        if self._is_encoder_decoder:
            return prompt, answer, torch.zeros(0)
        num_prefix = self._num_image_tokens + len(prompt)
        labels = torch.cat([torch.full((num_prefix,), NO_LABEL), answer])
        return torch.cat([prompt, answer]), labels, (torch.arange(len(labels)) >= num_prefix).long()

    def _encoded(self, segments: Prompt) -> list[int]:
        return self._tokenizer.encode([(segment.text, segment.is_control) for segment in segments])

    def _image_features(self, path: Path) -> Tensor:
        """Return features (N, C) of an image alone: no batch and no resume changes them."""
        if path not in self._features:
            try:
                image = read_image(path)
            except (OSError, ImageError) as error:
                raise ExportError(f"the image {path} cannot be read: {error}") from error
            resized = resize(image, self._image_input.size_wh, self._image_input.resample)
            features = self._encode(self._pixel_values(resized))[0]
            if self._num_cached_bytes + features.nbytes > _MAX_CACHED_BYTES:
                return features
            self._features[path] = features
            self._num_cached_bytes += features.nbytes
        return self._features[path]

    def _encode(self, pixel_values: Tensor) -> Tensor:
        """Return image features (1, N, C)."""
        for part in (self._model.model.vision_tower, self._model.model.multi_modal_projector):
            part.eval()  # a trainer sets the whole model to training
        with torch.no_grad():
            features: Tensor = self._model.get_image_features(pixel_values).pooler_output
        return features

    def _pixel_values(self, image: Image.Image) -> Tensor:
        values: Tensor = self._image_processor([image], do_resize=False, return_tensors="pt")[
            "pixel_values"
        ]
        return values.to(self._model.device, self._model.dtype)


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
    """Mean losses of an epoch."""

    number: int
    loss: float
    held_out_loss: float


def tune(job: TuningJob, base: Path, checkpoint: str | None) -> list[Epoch]:
    """Train, write the adapter of `best_epoch`, and return all epochs; raise `ExportError`."""
    options = job.options
    held_out, trained = split(job.images, options)
    job.run_folder.mkdir(parents=True, exist_ok=True)
    has_cuda = torch.cuda.is_available()
    model = load_checkpoint(base, torch.bfloat16 if has_cuda else torch.float32)
    model.config.use_cache = False
    batches = Batches(model, load_processor(base), base)
    tuned = with_adapter(model, job.entry.source, options)
    # torch's datasets are what has a length and items
    trained_rows: Any = list(map(batches.tokenized, trained))
    held_out_rows: Any = list(map(batches.tokenized, held_out))
    trainer = Trainer(
        model=tuned,
        args=_arguments(job.run_folder, options, has_cuda),
        train_dataset=trained_rows,
        eval_dataset=held_out_rows,
        data_collator=batches.stack,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    tuned.save_pretrained(str(job.output))  # the best, which the trainer has loaded
    shutil.rmtree(job.run_folder)
    return epochs_of(trainer.state.log_history)


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
        disable_tqdm=not sys.stderr.isatty(),
        seed=options.seed,
    )


def epochs_of(log: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    epochs = []
    loss = float("nan")
    for row in log:
        loss = row.get("loss", loss)
        if "eval_loss" in row:
            epochs.append(Epoch(round(row["epoch"]), loss, row["eval_loss"]))
    return epochs


def best_epoch(epochs: Sequence[Epoch]) -> Epoch:
    """Return the first epoch with the least held-out loss, which the trainer keeps."""
    return min(epochs, key=lambda epoch: epoch.held_out_loss)


_CARD = """\
---
{header}---
# {name}

A LoRA adapter of `{base.id}` ({base.source}) for `{job.task_id}`, tuned on `{data}`. Epoch {best} \
is kept. Measure it with `diptych evaluate` on images that are not in the dataset.

| epoch | loss | loss on held-out images |
|---:|---:|---:|
{epochs}

Options: {options}. Versions: {versions}.
"""


def write_card(job: TuningJob, data: Path, epochs: Sequence[Epoch]) -> None:
    """Write the card in place of PEFT's, which has the same name and is empty."""
    base = job.entry
    header = {
        "base_model": base.source,
        "library_name": "peft",
        "license": base.license,
        "pipeline_tag": "image-text-to-text",
        "tags": ["lora", job.task_id],
    }
    rows = []
    for epoch in epochs:
        rows.append(f"| {epoch.number} | {epoch.loss:.4f} | {epoch.held_out_loss:.4f} |")
    versions = []
    for package in ("peft", "torch", "transformers"):
        versions.append(f"{package} {importlib.metadata.version(package)}")
    card = _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        name=job.output.resolve().name,
        base=base,
        job=job,
        data=data.name,
        best=best_epoch(epochs).number,
        epochs="\n".join(rows),
        options=", ".join(f"{name} {value}" for name, value in asdict(job.options).items()),
        versions=", ".join(versions),
    )
    (job.output / "README.md").write_text(card, encoding="utf-8")

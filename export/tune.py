"""Tune a LoRA adapter on a labelled dataset: `python -m export.tune DATA --base MODEL --task TASK
--output FOLDER`.

Thin over PEFT and transformers' Trainer; docs/fine-tuning.md is the recipe. The adapter of the
epoch with the least loss on the held-out images is kept, in PEFT's format, with a model card. An
interrupted run continues after its last whole epoch with --resume.
"""

import argparse
import dataclasses
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent

import yaml

from export.checkpoints.bases import ROOT
from export.checkpoints.jobs import find_entry
from export.checkpoints.sources import in_transformers_form, resolve_source
from export.errors import ExportError
from export.tuning.examples import TUNED_TASKS, make_examples, read_labels
from tasks.catalog import CatalogEntry, CatalogError, TaskOverride

RUN_FOLDER = "run"  # the trainer's checkpoints in the output; removed when the run ends
INTERRUPTED = 130  # a shell's status of a command that Ctrl-C ended
MAX_LINES = 10  # problems of a dataset
_TEMPLATE_TASK = "visual_question_answering"
# their answers are learnt with the names as they are requested
_NAMED_TASKS = ("open_vocabulary_detection", "phrase_grounding")
_STATE_FILE = "trainer_state.json"  # written last, so that a checkpoint with it is complete


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parse(arguments)
    try:
        # an archive is unpacked here
        with TemporaryDirectory(prefix="diptych-") as work:
            tune_adapter(parsed, Path(work))
    except (ExportError, CatalogError) as error:
        print(f"python -m export.tune: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npython -m export.tune: stopped; --resume continues", file=sys.stderr)
        return INTERRUPTED
    return 0


def tune_adapter(parsed: argparse.Namespace, work: Path) -> None:
    """Tune an adapter, write its card and print its entry; raise `ExportError`, `CatalogError`."""
    checkpoint = checkpoint_to_resume(parsed.output, parsed.resume, parsed.overwrite)
    entry = tuned_entry(parsed.base, parsed.task, parsed.template)
    images, problems = read_labels(parsed.data, work, parsed.images)
    for line in filter(None, [*problems.lines[:MAX_LINES], problems.summary()]):
        print(line, file=sys.stderr)
    examples = make_examples(entry, parsed.task, images, parsed.seed)
    source = resolve_source(entry.source, entry.revision, entry.family, ROOT)
    num_examples = sum(map(len, examples))
    print(f"{num_examples} examples of {parsed.task} about {len(examples)} images", flush=True)
    # torch is imported here, which takes seconds
    from export.tuning.training import TuningJob, TuningOptions, best_epoch, tune, write_card

    names = [field.name for field in dataclasses.fields(TuningOptions)]
    options = TuningOptions(*(getattr(parsed, name) for name in names))
    job = TuningJob(
        entry, parsed.task, examples, parsed.output, parsed.output / RUN_FOLDER, options
    )
    with in_transformers_form(source) as base:
        epochs = tune(job, base.folder, checkpoint)
    write_card(job, parsed.data.resolve(), epochs)
    best = best_epoch(epochs)
    print(
        f"{parsed.output}: epoch {best.number} is kept, held-out loss {best.held_out_loss:.4f}; its"
        f" entry of the catalog, after that of {entry.id}:\n"
    )
    print(catalog_lines(entry, parsed), end="")


def checkpoint_to_resume(output: Path, resume: bool, overwrite: bool = False) -> str | None:
    """Return an interrupted run's last checkpoint; raise `ExportError` for files of others."""
    run = output / RUN_FOLDER
    if resume and not run.exists():
        raise ExportError(f"{output} has no interrupted run to resume")
    if not (resume or overwrite) and output.exists() and any(output.iterdir()):
        raise ExportError(
            f"{output} has files; give another --output, --resume for an interrupted run,"
            " or --overwrite to replace the files"
        )
    if not resume:
        shutil.rmtree(run, ignore_errors=True)
        return None
    complete = [path for path in run.glob("checkpoint-*") if (path / _STATE_FILE).is_file()]
    newest = max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest)


def catalog_lines(base: CatalogEntry, parsed: argparse.Namespace) -> str:
    """Return the entry of an adapter as YAML; its id is made of the folder's name."""
    name = re.sub(r"[^a-z0-9.-]+", "-", parsed.output.resolve().name.lower()).strip("-.")
    row: dict[str, object] = {
        "id": name or "adapter",
        "adapter_of": base.id,
        "source": str(parsed.output.resolve()),
    }
    if parsed.task in _NAMED_TASKS:
        row["forced_names"] = True
    if parsed.template is not None:
        row["tasks"] = {_TEMPLATE_TASK: {"template": parsed.template}}
    text = yaml.safe_dump([row], sort_keys=False, allow_unicode=True, width=sys.maxsize)
    return indent(text, "  ")


def tuned_entry(model_id: str, task_id: str, template: str | None) -> CatalogEntry:
    """Return the entry of the base, with the prompt that it will be tuned on."""
    entry = find_entry(model_id)
    if entry.adapter_of is not None:
        raise ExportError(f"--base {model_id} is an adapter; tune its base {entry.adapter_of}")
    if template is None:
        return entry
    is_question = task_id == _TEMPLATE_TASK and template.count("{question}") == 1
    if entry.family != "florence2" or not is_question:
        allowed = f"for {_TEMPLATE_TASK} of a Florence-2 model, with {{question}} once"
        raise ExportError(f"--template is {template!r}; allowed only {allowed}")
    return dataclasses.replace(entry, tasks={**entry.tasks, _TEMPLATE_TASK: TaskOverride(template)})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m export.tune", description=summary)
    add = parser.add_argument
    default = "default: %(default)s"
    tasks = ", ".join(TUNED_TASKS)
    data = "a folder, a label file or an archive of any format that `diptych evaluate` reads"
    images = "of the images, if they are not beside the labels"
    template = "a Florence-2 model's prompt of questions: '<DocVQA>{question}'"
    add("data", type=Path, metavar="DATA", help=data)
    add("--base", required=True, metavar="MODEL", help="an id of models/catalog.yaml")
    add("--task", required=True, choices=TUNED_TASKS, metavar="TASK", help=tasks)
    output = "of the adapter; must be empty"
    add("--output", type=Path, required=True, metavar="FOLDER", help=output)
    add("--images", type=Path, metavar="FOLDER", help=images)
    add("--template", help=template)
    add("--epochs", dest="num_epochs", type=_positive, default=10, metavar="N", help=default)
    add("--rank", type=_positive, default=16, help=f"of LoRA; {default}")
    add("--learning-rate", type=float, default=1e-3, metavar="RATE", help=default)
    add("--batch-size", type=_positive, default=8, metavar="N", help=default)
    share = f"of images; {default}"
    add("--held-out", dest="held_out_share", type=_share, default=0.1, metavar="SHARE", help=share)
    add("--seed", type=int, default=0, help=default)
    add("--resume", action="store_true", help="continue an interrupted run of this FOLDER")
    add("--overwrite", action="store_true", help="replace the files of a FOLDER that is not empty")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text}")
    return value


def _share(text: str) -> float:
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())

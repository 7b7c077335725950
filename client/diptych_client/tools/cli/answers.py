"""Answers of models to images, collected with a progress bar and kept for the next run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych_client.datasets.inputs import Folder, ImageFile, ImageStore
from diptych_client.datasets.long_runs import FailureLog
from diptych_client.datasets.records import Job, Record
from diptych_client.tools.cli.options import ConnectionOptions
from diptych_client.tools.cli.terminal import run_with_progress
from diptych_client.tools.consensus import Records
from diptych_client.tools.questions import AnswerLog, Collector, Sample


def collect_answers(
    connection: ConnectionOptions, collector: Collector, samples: Sequence[Sample], model: str
) -> None:
    """Send the requests that have no answer yet, with a progress bar."""
    num_requests = sum(1 for _ in collector.log.unanswered(samples, model))
    if not num_requests:
        return

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            requests = collector.log.unanswered(samples, model)
            await collector.collect(client, requests, advance)

    run_with_progress(num_requests, run, model)


@dataclass(frozen=True, slots=True)
class JobRunner:
    """Runs one job for each model on images; the answers about `folder` are kept in `out`."""

    connection: ConnectionOptions
    jobs: Sequence[Job]
    failures: FailureLog
    concurrency: int
    folder: Folder
    out: Path

    def run(self, store: ImageStore, images: Iterable[ImageFile]) -> list[Records]:
        """Return the records of each image that every model answered, now or in an earlier run."""
        # equal names of two folders are not one image
        path = (self.out if store == self.folder else self.out / "labelled") / "journal.jsonl"
        first = self.jobs[0]
        samples = [Sample(image, (first.parameters,), None) for image in images]
        complete = []
        with AnswerLog.open(path, first.task, first.options) as log:
            collector = Collector(log, self.failures, store, self.concurrency)
            for job in self.jobs:
                collect_answers(self.connection, collector, samples, job.model)
            for sample in samples:
                records = []
                for job in self.jobs:
                    for answer in log.answers(sample, job.model) or ():
                        records.append(Record(sample.image, answer))
                if len(records) == len(self.jobs):
                    complete.append(tuple(records))
        return complete

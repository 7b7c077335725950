"""Prints the rows that the model of an actor answers, without Ray.

    python -m tests.system.offline_answers MODEL TASK FILE…

One line of JSON for each file; DIPTYCH_MODELS is needed for an adapter, with its base. It is
a separate process: a runner watches, and may end, the process that holds it.
"""

import asyncio
import json
import os
import sys
from dataclasses import asdict

from offline.filesystems import StoredFile
from offline.output import Job, build_of
from offline.pipeline import load_answerer
from offline.shards import FilesShard
from service.inference.served_models import load_served_models
from service.settings import read_settings


async def main(model: str, task: str, *files: str) -> None:
    settings = read_settings({"DIPTYCH_MODELS": model} | dict(os.environ))
    fields = {"task": task}
    build = build_of(load_served_models(settings)[model], fields, settings)
    job = Job(build, fields, "jsonl", len(files), 1, "")
    answerer = await load_answerer(job, settings)
    for row in await answerer.rows(FilesShard(tuple(StoredFile(file, file) for file in files))):
        print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    os._exit(0)  # the threads of the runner are not to be joined

"""Labels a folder of images with one task of one model, or of two that must agree.

job.py is the question and its images, labelling.py sends the requests, journal.py stores each
answer as it arrives, dataset_files.py writes COCO, YOLO or JSON lines from the journal, and
consensus.py compares the journals of two models.
"""

from diptych_client.annotate.consensus import AgreementRule, agree, write_consensus
from diptych_client.annotate.dataset_files import (
    DatasetFormat,
    check_consensus,
    check_format,
    write_dataset,
)
from diptych_client.annotate.job import Job, check_folders, find_images
from diptych_client.annotate.journal import Journal
from diptych_client.annotate.labelling import Labeller, label_images

__all__ = [
    "AgreementRule",
    "DatasetFormat",
    "Job",
    "Journal",
    "Labeller",
    "agree",
    "check_consensus",
    "check_folders",
    "check_format",
    "find_images",
    "label_images",
    "write_consensus",
    "write_dataset",
]

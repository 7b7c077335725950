"""Labels a folder of images with one task of one model.

job.py is the question and its images, labelling.py sends the requests, journal.py stores each answer as it arrives, and
dataset.py writes COCO, YOLO or JSON lines from the journal.
"""

from diptych_client.annotate.dataset import DatasetFormat, check_format, write_dataset
from diptych_client.annotate.job import Job, check_folders, find_images
from diptych_client.annotate.journal import Journal
from diptych_client.annotate.labelling import Labeller, label_images

__all__ = [
    "DatasetFormat",
    "Job",
    "Journal",
    "Labeller",
    "check_folders",
    "check_format",
    "find_images",
    "label_images",
    "write_dataset",
]

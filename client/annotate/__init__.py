"""Labels a folder of images.

images.py finds them, labelling.py asks, journal.py keeps every answer as it comes, and dataset.py writes what was asked
for from the journal: coco.py, yolo.py, or one line of JSON an image.
"""

from client.annotate.dataset import DatasetFormat, check_format, write_dataset
from client.annotate.images import find_images, separate_folders
from client.annotate.job import AnnotationError, Job
from client.annotate.journal import Journal
from client.annotate.labelling import Failures, Labeller, label_images

__all__ = [
    "AnnotationError",
    "DatasetFormat",
    "Failures",
    "Job",
    "Journal",
    "Labeller",
    "check_format",
    "find_images",
    "label_images",
    "separate_folders",
    "write_dataset",
]

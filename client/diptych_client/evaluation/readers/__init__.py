"""Readers of datasets, a module for each format; `read_dataset` recognizes it by the files.

coco.py           COCO's JSON: objects with boxes and masks, or captions
yolo.py           Ultralytics' folders, with or without data.yaml: boxes or outlines
voc.py            Pascal VOC: one XML file for each image
cvat.py           CVAT's XML
label_studio.py   Label Studio's JSON
json_lines.py     one JSON object for each image: captions, texts, questions, phrases, objects
hugging_face.py   folders and Parquet files of the library `datasets`

A folder of none of them is one of images without labels.
"""

from diptych_client.evaluation.dataset import NoSuchSplit
from diptych_client.evaluation.readers.detect import read_dataset

__all__ = ["NoSuchSplit", "read_dataset"]

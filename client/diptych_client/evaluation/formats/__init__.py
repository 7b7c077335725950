"""Formats of datasets; a module reads one and writes it, where `annotate` writes it.

coco.py           COCO's JSON: objects with boxes and masks, or captions
yolo.py           Ultralytics' folders, with or without data.yaml: boxes or outlines
label_studio.py   Label Studio's JSON
rows.py           JSON lines, and Hugging Face's folders and Parquet files: one row for each image
xml.py            Pascal VOC and CVAT

reading.py recognizes a format by its files; writing.py has those that `annotate` offers.
"""

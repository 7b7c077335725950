"""Formats of datasets; a module reads one and writes it, where `annotate` writes it.

annotations.py   COCO, Label Studio, Pascal VOC and CVAT
yolo.py          Ultralytics' folders, with or without data.yaml: boxes or outlines
rows.py          JSON lines, and Hugging Face's folders and Parquet files: one row for each image

reading.py recognizes a format by its files; writing.py has those that `annotate` offers.
"""

"""Answers as values of other libraries; each is imported when called.

supervision_detections.py   supervision: boxes, masks, quads
fiftyone_labels.py          FiftyOne: detections, polylines, classifications
coco.py                     COCO's JSON
table.py                    a table of pandas
"""

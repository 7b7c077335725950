"""Labels a folder of images with one task of one model, or of two that must agree.

job.py is the question and its images, labelling.py sends the requests, journal.py stores each
answer as it arrives, dataset_files.py writes COCO, YOLO or JSON lines from the journal, and
consensus.py compares the journals of two models.

With labelled images (needs the extra `evaluate`): proposals.py gives each label a confidence,
judging.py compares it with the true ones, guarantee.py proves which confidence is enough, and
proving.py puts them together. shift.py finds images unlike the labelled ones by the numbers of
appearance.py, and suggesting.py images for a person to label.
"""

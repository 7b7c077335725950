"""Evaluates models on a dataset, or compares them on images without labels; labels a folder.

formats/       label files -> images with labels (dataset.py), and back
questions.py   images with labels and a task -> requests -> a log of answers -> predictions
objects.py, texts.py, evaluator.py   truth and predictions -> metrics, agreement of each two models
statistics.py  metrics -> intervals and paired differences; evidence at any number of images
report.py      the results as HTML, Markdown and JSON
annotation/    labels of a folder, and what labelled images prove about them

All but formats that `annotate` writes need the extra `evaluate`.
"""

"""Evaluates models on a dataset, or compares them on images without labels.

Needs the extra `evaluate`.

readers/          dataset files (foreign_files.py) -> images with labels (dataset.py)
questionnaire.py  images with labels and a task -> samples: requests and true answers
answer_log.py     samples -> the service -> a log -> predictions
metrics/          truth and predictions -> metrics of each model, agreement of each two
statistics.py     metrics -> intervals and paired differences
betting.py        evidence about a mean that holds at any number of images
deciding.py       errors of two models -> the better one, as soon as it is known
run_record.py     when, where and with which options
report/           the results as HTML, Markdown and JSON
"""

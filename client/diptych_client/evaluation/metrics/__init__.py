"""Metrics of a model against the truth, and of two models against each other.

detection.py    objects: COCO's AP by pycocotools, with resampling over its matches
objects.py      objects: the measure of a model: AP, confusion matrix, precision and recall over the
                score
phrases.py      phrases: accuracy at IoU 0.5 and mean mask IoU, as for RefCOCO
texts.py        texts: error rates by jiwer, ANLS, VQA accuracy
cider.py        captions: CIDEr-D
agreement.py    two models without labels
evaluator.py    all of them over the samples that every model answered
race.py         two models until one is known to be better
"""

from diptych_client.evaluation.metrics.evaluator import Evaluation, Evaluator, sampled

__all__ = ["Evaluation", "Evaluator", "sampled"]

"""Agreement of two models without labels: by image, by class and box, by text."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from rapidfuzz.distance import Levenshtein

from diptych_client.evaluation.answer_log import Prediction
from diptych_client.evaluation.metrics.outcome import Outcome
from diptych_client.evaluation.questionnaire import ClassNames
from diptych_client.evaluation.statistics import Metric, Ratio
from diptych_client.matching import Kind, LabelledBox, match
from diptych_client.results import box_of

_SHOWN: Mapping[Kind, str] = {
    "right": "found by both",
    "loosely placed": "found by both, loosely",
    "wrong class": "other label",
    "badly placed": "placed differently",
}


@dataclass(frozen=True, slots=True)
class ClassAgreement:
    """Objects of a class: found by both with IoU >= 0.5, by one only, or with another label."""

    both: int
    only_first: int
    only_second: int
    other_label: int


@dataclass(slots=True)
class Agreement:
    """Two models' answers, added one by one."""

    first: str
    second: str
    names: ClassNames
    scores: list[float] = field(default_factory=list)  # one per sample, 0 to 1
    kinds_by_class: defaultdict[str, Counter[Kind]] = field(
        default_factory=lambda: defaultdict(Counter)
    )

    @property
    def title(self) -> str:
        return f"{self.first} and {self.second}"

    def add(self, first: Prediction, second: Prediction) -> Outcome:
        """Count two answers and return how much they differ."""
        if first.text is not None:
            distance = Levenshtein.normalized_distance(first.text, second.text or "")
            self.scores.append(1 - distance)
            return Outcome(distance, frozenset({"texts differ" if distance else "same text"}))
        a = [LabelledBox(self.names.label(item), box_of(item)) for item in first.items]
        b = [LabelledBox(self.names.label(item), box_of(item)) for item in second.items]
        shown = {**_SHOWN, "missed": f"only {self.first}", "extra": f"only {self.second}"}
        kinds = set[str]()
        credit = 0.0
        for pair in match(a, b):
            label = a[pair.truth].label if pair.truth is not None else b[pair.answer or 0].label
            self.kinds_by_class[label][pair.kind] += 1
            kinds.add(shown[pair.kind])
            credit += pair.credit
        disagreement = 1 - 2 * credit / (len(a) + len(b)) if a or b else 0.0
        labels = frozenset(each.label for each in (*a, *b))
        self.scores.append(1 - disagreement)
        return Outcome(disagreement, frozenset(kinds), labels)

    def metric(self) -> Metric:
        """Return the mean: of boxes F1 over COCO's IoU thresholds, of texts 1 - edit distance."""
        scores = np.array(self.scores)
        return Metric("agreement", Ratio(scores, np.ones_like(scores)))

    def by_class(self) -> Mapping[str, ClassAgreement]:
        found = {}
        for label, kinds in sorted(self.kinds_by_class.items()):
            other_label = kinds["wrong class"] + kinds["badly placed"]
            only = (kinds["missed"], kinds["extra"])
            both = kinds["right"] + kinds["loosely placed"]
            found[label] = ClassAgreement(both, *only, other_label)
        return found

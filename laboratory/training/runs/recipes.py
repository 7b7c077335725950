"""The hyperparameters of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from laboratory.training.runs.optimizer import Rates

StageName = Literal["encoder", "joint", "refining"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a run with its own schedule of learning rates."""

    name: StageName
    first_step: int
    num_steps: int
    top_rate: float = 1.0  # factor on the recipe's rates

    def progress(self, step: int) -> float:
        """Return the progress of a step in this stage, 0 to 1."""
        return (step - self.first_step) / self.num_steps


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model's stages: encoder on cell targets, whole model on answers, then refining.

    Refining trains on answers without auxiliary losses, mostly on those that take longest to learn.
    """

    encoder_steps: int
    joint_steps: int
    weights: Mapping[str, float]  # keyed by question name
    # factor on the vision rates after the encoder stage: answers would spoil its result
    joint_vision_factor: float
    refining_weights: Mapping[str, float]
    encoder_images: int = 32  # per step
    joint_images: int = 12
    sequences_per_image: int = 4
    rates: Rates = field(default_factory=Rates)
    refining_steps: int = 3600
    refining_rate: float = 0.3  # factor on the rates
    flat_share: float = 0.3  # share of a stage's steps, before cosine down to `final_rate`
    final_rate: float = 0.02
    warm_up_steps: int = 50
    # share of the joint steps until scenes have their full number of objects
    full_difficulty_share: float = 0.15
    first_sigma: float = 1.0  # width of a location's target in grid steps
    final_sigma: float = 0.25
    cell_weight: float = 0.5  # weight of an auxiliary loss, like the next three
    rank_weight: float = 1.0
    attention_weight: float = 0.5
    attribute_weight: float = 0.3
    max_gradient_norm: float = 5.0
    validation_every: int = 500
    saved_every: int = 200

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in their order."""
        joint_end = self.encoder_steps + self.joint_steps
        return (
            Stage("encoder", 0, self.encoder_steps),
            Stage("joint", self.encoder_steps, self.joint_steps),
            Stage("refining", joint_end, self.refining_steps, self.refining_rate),
        )

    def stage_of(self, step: int) -> Stage:
        """Return the stage of a step."""
        return [stage for stage in self.stages if step >= stage.first_step][-1]

    @property
    def num_steps(self) -> int:
        """Number of steps of the whole run."""
        return sum(stage.num_steps for stage in self.stages)


_WEIGHTS = {
    "captioning short": 0.8,
    "captioning detailed": 2.0,
    "object_detection": 0.8,
    "dense_region_captioning": 0.8,
    "region_proposal": 0.5,
    "open_vocabulary_detection shape": 0.8,
    "open_vocabulary_detection coloured shape": 0.8,
    "open_vocabulary_detection several": 1.2,
    "open_vocabulary_detection absent": 0.5,
    "phrase_grounding caption": 1.0,
    "phrase_grounding phrases": 1.2,
    "instance_segmentation phrase": 1.6,
    "instance_segmentation region": 1.6,
    "ocr": 1.6,
    "ocr_with_regions": 1.4,
    "region_description category": 0.6,
    "region_description description": 1.0,
    "region_description text": 1.2,
    "visual_question_answering color": 0.6,
    "visual_question_answering presence": 0.6,
    "visual_question_answering count": 0.5,
    "visual_question_answering text": 0.6,
}

# Polygons, the longest answers, take longest to learn; then the words in captions, and the outlines
# of stars.
_FLORENCE2_WEIGHTS = _WEIGHTS | {
    "instance_segmentation phrase": 5.0,
    "instance_segmentation region": 5.0,
}
_FLORENCE2_LAST_WEIGHTS = _WEIGHTS | {
    "captioning detailed": 6.0,
    "ocr": 3.0,
    "ocr_with_regions": 2.0,
    "region_description text": 2.0,
    "instance_segmentation phrase": 3.0,
    "instance_segmentation region": 3.0,
    "instance_segmentation phrase star": 15.0,
    "instance_segmentation region star": 15.0,
}

# Reading takes longest to learn, mostly in small images.
_PALIGEMMA_LAST_WEIGHTS = _WEIGHTS | {
    "captioning detailed": 6.0,
    "ocr": 4.0,
    "visual_question_answering text": 2.0,
    "instance_segmentation phrase": 1.0,
}

RECIPES = {
    "florence-2-mini": Recipe(
        encoder_steps=1800,
        joint_steps=4400,
        weights=_FLORENCE2_WEIGHTS,
        joint_vision_factor=0.2,
        refining_weights=_FLORENCE2_LAST_WEIGHTS,
    ),
    "paligemma-mini": Recipe(
        encoder_steps=2600,
        joint_steps=3000,
        weights=_WEIGHTS,
        joint_vision_factor=0.3,
        refining_weights=_PALIGEMMA_LAST_WEIGHTS,
    ),
}

"""Every number of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from export.training.optimizer import Rates


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is trained: its encoder alone on what stands at each cell, then everything on answers."""

    encoder_steps: int
    encoder_images: int  # of one step
    joint_steps: int
    joint_images: int
    sequences_per_image: int
    weights: Mapping[str, float]  # of the questions, by their names
    joint_vision_factor: float  # on the rates of the vision part: the answers' first gradients would spoil it
    rates: Rates = field(default_factory=Rates)
    flat_share: float = 0.3  # of the steps; then cosine down to `final_rate`
    final_rate: float = 0.02
    warm_up_steps: int = 50
    full_difficulty_share: float = 0.15  # of the joint steps until scenes are as crowded as they get
    first_sigma: float = 1.0  # width of a location's target, grid steps
    final_sigma: float = 0.25
    cell_weight: float = 0.5  # of the losses beside that of the answers
    rank_weight: float = 1.0
    attention_weight: float = 0.5
    attribute_weight: float = 0.3
    max_gradient_norm: float = 5.0
    validation_every: int = 500
    saved_every: int = 200


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

# Polygons are the longest answers, and learnt last.
_FLORENCE2_WEIGHTS = _WEIGHTS | {"instance_segmentation phrase": 5.0, "instance_segmentation region": 5.0}

RECIPES = {
    "florence-2-mini": Recipe(
        encoder_steps=1800,
        encoder_images=32,
        joint_steps=4400,
        joint_images=12,
        sequences_per_image=4,
        weights=_FLORENCE2_WEIGHTS,
        joint_vision_factor=0.2,
    ),
    "paligemma-mini": Recipe(
        encoder_steps=2600,
        encoder_images=32,
        joint_steps=3000,
        joint_images=12,
        sequences_per_image=4,
        weights=_WEIGHTS,
        joint_vision_factor=0.3,
    ),
}

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PredictRequest(_message.Message):
    __slots__ = ("image", "task", "model", "labels", "caption", "phrases", "phrase", "region", "detail", "language", "question", "max_new_tokens", "num_beams", "temperature", "top_p", "seed", "constrained", "mask_format", "min_score", "nms_iou", "images", "tiles", "overlap", "min_object_px", "min_precision", "image_embedding")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    PHRASE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINED_FIELD_NUMBER: _ClassVar[int]
    MASK_FORMAT_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    NMS_IOU_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    MIN_OBJECT_PX_FIELD_NUMBER: _ClassVar[int]
    MIN_PRECISION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    task: str
    model: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    caption: str
    phrases: _containers.RepeatedScalarFieldContainer[str]
    phrase: str
    region: _containers.RepeatedScalarFieldContainer[float]
    detail: str
    language: str
    question: str
    max_new_tokens: int
    num_beams: int
    temperature: float
    top_p: float
    seed: int
    constrained: bool
    mask_format: str
    min_score: float
    nms_iou: float
    images: _containers.RepeatedScalarFieldContainer[bytes]
    tiles: str
    overlap: float
    min_object_px: int
    min_precision: float
    image_embedding: bool
    def __init__(self, image: _Optional[bytes] = ..., task: _Optional[str] = ..., model: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., caption: _Optional[str] = ..., phrases: _Optional[_Iterable[str]] = ..., phrase: _Optional[str] = ..., region: _Optional[_Iterable[float]] = ..., detail: _Optional[str] = ..., language: _Optional[str] = ..., question: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., num_beams: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., constrained: _Optional[bool] = ..., mask_format: _Optional[str] = ..., min_score: _Optional[float] = ..., nms_iou: _Optional[float] = ..., images: _Optional[_Iterable[bytes]] = ..., tiles: _Optional[str] = ..., overlap: _Optional[float] = ..., min_object_px: _Optional[int] = ..., min_precision: _Optional[float] = ..., image_embedding: _Optional[bool] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("image", "task", "models", "labels", "caption", "phrases", "phrase", "region", "detail", "language", "question", "max_new_tokens", "num_beams", "temperature", "top_p", "seed", "constrained", "mask_format", "min_score", "nms_iou", "images", "tiles", "overlap", "min_object_px", "min_precision")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    PHRASE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINED_FIELD_NUMBER: _ClassVar[int]
    MASK_FORMAT_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    NMS_IOU_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    MIN_OBJECT_PX_FIELD_NUMBER: _ClassVar[int]
    MIN_PRECISION_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    task: str
    models: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.RepeatedScalarFieldContainer[str]
    caption: str
    phrases: _containers.RepeatedScalarFieldContainer[str]
    phrase: str
    region: _containers.RepeatedScalarFieldContainer[float]
    detail: str
    language: str
    question: str
    max_new_tokens: int
    num_beams: int
    temperature: float
    top_p: float
    seed: int
    constrained: bool
    mask_format: str
    min_score: float
    nms_iou: float
    images: _containers.RepeatedScalarFieldContainer[bytes]
    tiles: str
    overlap: float
    min_object_px: int
    min_precision: float
    def __init__(self, image: _Optional[bytes] = ..., task: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., labels: _Optional[_Iterable[str]] = ..., caption: _Optional[str] = ..., phrases: _Optional[_Iterable[str]] = ..., phrase: _Optional[str] = ..., region: _Optional[_Iterable[float]] = ..., detail: _Optional[str] = ..., language: _Optional[str] = ..., question: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., num_beams: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., constrained: _Optional[bool] = ..., mask_format: _Optional[str] = ..., min_score: _Optional[float] = ..., nms_iou: _Optional[float] = ..., images: _Optional[_Iterable[bytes]] = ..., tiles: _Optional[str] = ..., overlap: _Optional[float] = ..., min_object_px: _Optional[int] = ..., min_precision: _Optional[float] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x1", "y1", "x2", "y2")
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    X2_FIELD_NUMBER: _ClassVar[int]
    Y2_FIELD_NUMBER: _ClassVar[int]
    x1: float
    y1: float
    x2: float
    y2: float
    def __init__(self, x1: _Optional[float] = ..., y1: _Optional[float] = ..., x2: _Optional[float] = ..., y2: _Optional[float] = ...) -> None: ...

class Detection(_message.Message):
    __slots__ = ("box", "label", "score")
    BOX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    box: Box
    label: str
    score: float
    def __init__(self, box: _Optional[_Union[Box, _Mapping]] = ..., label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Detections(_message.Message):
    __slots__ = ("detections",)
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    detections: _containers.RepeatedCompositeFieldContainer[Detection]
    def __init__(self, detections: _Optional[_Iterable[_Union[Detection, _Mapping]]] = ...) -> None: ...

class Ring(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[Point]
    def __init__(self, points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ...) -> None: ...

class Polygons(_message.Message):
    __slots__ = ("rings",)
    RINGS_FIELD_NUMBER: _ClassVar[int]
    rings: _containers.RepeatedCompositeFieldContainer[Ring]
    def __init__(self, rings: _Optional[_Iterable[_Union[Ring, _Mapping]]] = ...) -> None: ...

class RunLengths(_message.Message):
    __slots__ = ("height", "width", "counts")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    counts: str
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., counts: _Optional[str] = ...) -> None: ...

class Instance(_message.Message):
    __slots__ = ("box", "label", "score", "polygons", "mask")
    BOX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    POLYGONS_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    box: Box
    label: str
    score: float
    polygons: Polygons
    mask: RunLengths
    def __init__(self, box: _Optional[_Union[Box, _Mapping]] = ..., label: _Optional[str] = ..., score: _Optional[float] = ..., polygons: _Optional[_Union[Polygons, _Mapping]] = ..., mask: _Optional[_Union[RunLengths, _Mapping]] = ...) -> None: ...

class Instances(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    def __init__(self, instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ...) -> None: ...

class TextRegion(_message.Message):
    __slots__ = ("quad", "text", "score")
    QUAD_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    quad: _containers.RepeatedCompositeFieldContainer[Point]
    text: str
    score: float
    def __init__(self, quad: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., text: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class TextRegions(_message.Message):
    __slots__ = ("text_regions",)
    TEXT_REGIONS_FIELD_NUMBER: _ClassVar[int]
    text_regions: _containers.RepeatedCompositeFieldContainer[TextRegion]
    def __init__(self, text_regions: _Optional[_Iterable[_Union[TextRegion, _Mapping]]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("image_tokens", "prompt_tokens", "generated_tokens", "constrained_tokens")
    IMAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    image_tokens: int
    prompt_tokens: int
    generated_tokens: int
    constrained_tokens: int
    def __init__(self, image_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., constrained_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("preprocess", "encode", "prefill", "decode", "postprocess", "queue", "total")
    PREPROCESS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    preprocess: float
    encode: float
    prefill: float
    decode: float
    postprocess: float
    queue: float
    total: float
    def __init__(self, preprocess: _Optional[float] = ..., encode: _Optional[float] = ..., prefill: _Optional[float] = ..., decode: _Optional[float] = ..., postprocess: _Optional[float] = ..., queue: _Optional[float] = ..., total: _Optional[float] = ...) -> None: ...

class Tiles(_message.Message):
    __slots__ = ("rows", "columns", "asked", "skipped", "merged")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: int
    asked: int
    skipped: int
    merged: int
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[int] = ..., asked: _Optional[int] = ..., skipped: _Optional[int] = ..., merged: _Optional[int] = ...) -> None: ...

class Guarantee(_message.Message):
    __slots__ = ("min_precision", "confidence", "min_score", "max_labels", "images", "left_out")
    MIN_PRECISION_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    MAX_LABELS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    min_precision: float
    confidence: float
    min_score: float
    max_labels: int
    images: int
    left_out: int
    def __init__(self, min_precision: _Optional[float] = ..., confidence: _Optional[float] = ..., min_score: _Optional[float] = ..., max_labels: _Optional[int] = ..., images: _Optional[int] = ..., left_out: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("id", "model", "task", "text", "detections", "instances", "text_regions", "raw_text", "finish_reason", "image", "usage", "vision_cache", "timings_ms", "calibrated", "labels", "outcomes", "tiles", "familiarity", "guarantee", "image_embedding")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    TEXT_REGIONS_FIELD_NUMBER: _ClassVar[int]
    RAW_TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    VISION_CACHE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_MS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    FAMILIARITY_FIELD_NUMBER: _ClassVar[int]
    GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    task: str
    text: str
    detections: Detections
    instances: Instances
    text_regions: TextRegions
    raw_text: str
    finish_reason: str
    image: Image
    usage: Usage
    vision_cache: str
    timings_ms: Timings
    calibrated: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    outcomes: _containers.RepeatedCompositeFieldContainer[ImageOutcome]
    tiles: Tiles
    familiarity: float
    guarantee: Guarantee
    image_embedding: str
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., task: _Optional[str] = ..., text: _Optional[str] = ..., detections: _Optional[_Union[Detections, _Mapping]] = ..., instances: _Optional[_Union[Instances, _Mapping]] = ..., text_regions: _Optional[_Union[TextRegions, _Mapping]] = ..., raw_text: _Optional[str] = ..., finish_reason: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., vision_cache: _Optional[str] = ..., timings_ms: _Optional[_Union[Timings, _Mapping]] = ..., calibrated: _Optional[bool] = ..., labels: _Optional[_Iterable[str]] = ..., outcomes: _Optional[_Iterable[_Union[ImageOutcome, _Mapping]]] = ..., tiles: _Optional[_Union[Tiles, _Mapping]] = ..., familiarity: _Optional[float] = ..., guarantee: _Optional[_Union[Guarantee, _Mapping]] = ..., image_embedding: _Optional[str] = ...) -> None: ...

class ImageOutcome(_message.Message):
    __slots__ = ("answer", "comparison", "analysis", "error")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    ANALYSIS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    answer: Answer
    comparison: Comparison
    analysis: Analysis
    error: Error
    def __init__(self, answer: _Optional[_Union[Answer, _Mapping]] = ..., comparison: _Optional[_Union[Comparison, _Mapping]] = ..., analysis: _Optional[_Union[Analysis, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class PredictEvent(_message.Message):
    __slots__ = ("text", "answer", "view")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    text: str
    answer: Answer
    view: View
    def __init__(self, text: _Optional[str] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., view: _Optional[_Union[View, _Mapping]] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("view", "text", "detections", "instances", "text_regions")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    TEXT_REGIONS_FIELD_NUMBER: _ClassVar[int]
    view: _containers.RepeatedScalarFieldContainer[int]
    text: str
    detections: Detections
    instances: Instances
    text_regions: TextRegions
    def __init__(self, view: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., detections: _Optional[_Union[Detections, _Mapping]] = ..., instances: _Optional[_Union[Instances, _Mapping]] = ..., text_regions: _Optional[_Union[TextRegions, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "param", "request_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    param: str
    request_id: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., param: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ModelAnswer(_message.Message):
    __slots__ = ("model", "answer", "error")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    model: str
    answer: Answer
    error: Error
    def __init__(self, model: _Optional[str] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("id", "task", "image", "answers", "outcomes")
    ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    id: str
    task: str
    image: Image
    answers: _containers.RepeatedCompositeFieldContainer[ModelAnswer]
    outcomes: _containers.RepeatedCompositeFieldContainer[ImageOutcome]
    def __init__(self, id: _Optional[str] = ..., task: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., answers: _Optional[_Iterable[_Union[ModelAnswer, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[ImageOutcome, _Mapping]]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("id", "task", "model", "labels", "caption", "phrases", "phrase", "region", "detail", "language", "question", "max_new_tokens", "num_beams", "temperature", "top_p", "seed", "constrained", "mask_format", "min_score", "nms_iou", "models", "each", "view", "margin", "max_each", "tiles", "overlap", "min_object_px", "min_precision")
    ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    PHRASES_FIELD_NUMBER: _ClassVar[int]
    PHRASE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINED_FIELD_NUMBER: _ClassVar[int]
    MASK_FORMAT_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    NMS_IOU_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    EACH_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    MAX_EACH_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    MIN_OBJECT_PX_FIELD_NUMBER: _ClassVar[int]
    MIN_PRECISION_FIELD_NUMBER: _ClassVar[int]
    id: str
    task: str
    model: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    caption: str
    phrases: _containers.RepeatedScalarFieldContainer[str]
    phrase: str
    region: _containers.RepeatedScalarFieldContainer[float]
    detail: str
    language: str
    question: str
    max_new_tokens: int
    num_beams: int
    temperature: float
    top_p: float
    seed: int
    constrained: bool
    mask_format: str
    min_score: float
    nms_iou: float
    models: _containers.RepeatedScalarFieldContainer[str]
    each: str
    view: str
    margin: float
    max_each: int
    tiles: str
    overlap: float
    min_object_px: int
    min_precision: float
    def __init__(self, id: _Optional[str] = ..., task: _Optional[str] = ..., model: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., caption: _Optional[str] = ..., phrases: _Optional[_Iterable[str]] = ..., phrase: _Optional[str] = ..., region: _Optional[_Iterable[float]] = ..., detail: _Optional[str] = ..., language: _Optional[str] = ..., question: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., num_beams: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., constrained: _Optional[bool] = ..., mask_format: _Optional[str] = ..., min_score: _Optional[float] = ..., nms_iou: _Optional[float] = ..., models: _Optional[_Iterable[str]] = ..., each: _Optional[str] = ..., view: _Optional[str] = ..., margin: _Optional[float] = ..., max_each: _Optional[int] = ..., tiles: _Optional[str] = ..., overlap: _Optional[float] = ..., min_object_px: _Optional[int] = ..., min_precision: _Optional[float] = ...) -> None: ...

class AnalyzeRequest(_message.Message):
    __slots__ = ("image", "steps", "images")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    images: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, image: _Optional[bytes] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., images: _Optional[_Iterable[bytes]] = ...) -> None: ...

class StepAnswer(_message.Message):
    __slots__ = ("of", "view", "model", "answer", "error")
    OF_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    of: int
    view: _containers.RepeatedScalarFieldContainer[int]
    model: str
    answer: Answer
    error: Error
    def __init__(self, of: _Optional[int] = ..., view: _Optional[_Iterable[int]] = ..., model: _Optional[str] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class StepAnswers(_message.Message):
    __slots__ = ("id", "task", "truncated", "answers")
    ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    task: str
    truncated: bool
    answers: _containers.RepeatedCompositeFieldContainer[StepAnswer]
    def __init__(self, id: _Optional[str] = ..., task: _Optional[str] = ..., truncated: _Optional[bool] = ..., answers: _Optional[_Iterable[_Union[StepAnswer, _Mapping]]] = ...) -> None: ...

class Analysis(_message.Message):
    __slots__ = ("id", "image", "steps", "outcomes")
    ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    id: str
    image: Image
    steps: _containers.RepeatedCompositeFieldContainer[StepAnswers]
    outcomes: _containers.RepeatedCompositeFieldContainer[ImageOutcome]
    def __init__(self, id: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[StepAnswers, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[ImageOutcome, _Mapping]]] = ...) -> None: ...

class StepEvent(_message.Message):
    __slots__ = ("step", "answer")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    step: str
    answer: StepAnswer
    def __init__(self, step: _Optional[str] = ..., answer: _Optional[_Union[StepAnswer, _Mapping]] = ...) -> None: ...

class AnalyzeEvent(_message.Message):
    __slots__ = ("answer", "analysis")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ANALYSIS_FIELD_NUMBER: _ClassVar[int]
    answer: StepEvent
    analysis: Analysis
    def __init__(self, answer: _Optional[_Union[StepEvent, _Mapping]] = ..., analysis: _Optional[_Union[Analysis, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Model(_message.Message):
    __slots__ = ("id", "family", "organization", "category", "modality", "release_date", "context_window", "parameters", "license", "tasks", "features", "resolution", "precision", "checkpoint", "calibrated_tasks", "adapter_of", "calibration")
    ID_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DATE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_WINDOW_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_TASKS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_OF_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    id: str
    family: str
    organization: str
    category: str
    modality: str
    release_date: str
    context_window: int
    parameters: int
    license: str
    tasks: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.RepeatedScalarFieldContainer[str]
    resolution: int
    precision: str
    checkpoint: str
    calibrated_tasks: _containers.RepeatedScalarFieldContainer[str]
    adapter_of: str
    calibration: str
    def __init__(self, id: _Optional[str] = ..., family: _Optional[str] = ..., organization: _Optional[str] = ..., category: _Optional[str] = ..., modality: _Optional[str] = ..., release_date: _Optional[str] = ..., context_window: _Optional[int] = ..., parameters: _Optional[int] = ..., license: _Optional[str] = ..., tasks: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[str]] = ..., resolution: _Optional[int] = ..., precision: _Optional[str] = ..., checkpoint: _Optional[str] = ..., calibrated_tasks: _Optional[_Iterable[str]] = ..., adapter_of: _Optional[str] = ..., calibration: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "description", "result", "parameters_json_schema", "models")
    ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    id: str
    description: str
    result: str
    parameters_json_schema: str
    models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., description: _Optional[str] = ..., result: _Optional[str] = ..., parameters_json_schema: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ...) -> None: ...

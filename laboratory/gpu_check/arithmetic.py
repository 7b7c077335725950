"""The reach of a card, by arithmetic: the table of docs/operations.md.

    encoder    operations of its products by the card's rate, and the activations that its kernels
               read and write by the card's bandwidth
    prefill    likewise of image and prompt
    steps      the larger of the bytes that a step reads by the bandwidth, and of its kernels by the
               time of a small one; for each token, divided by the sequences of the step

Nothing here was measured on a card. Shapes are those of the checkpoints. A matrix of p weights over
n positions takes 2 p n operations. Activations are counted in widths of a layer, each 2 bytes, from
the kernels of the layer. The kernels of a step are counted on the fake card
(tests/support/fake_cuda, `captures`) with the embedded models, and scaled by layers.
"""

from dataclasses import dataclass

from loadtest.figures import shown, table

_NUM_TOKENS = 30  # an answer's, as the throughput check of `make gpu-check` has them
_NUM_SLOTS = 64
_BYTES = 2  # a value's
_KERNEL_S = 2e-6  # a graph's smallest kernel
_USUAL = (0.4, 0.7)  # shares of rate and bandwidth in the second figure
# widths that the kernels of a layer read and write a position: a block of DaViT, a layer of BART's
# encoder, of SigLIP, of Gemma with its feed-forward eight times as wide
_DAVIT_WIDTHS = 58
_BART_WIDTHS = 45
_SIGLIP_WIDTHS = 37
_GEMMA_WIDTHS = 98
# a step of the embedded models, with 3 and 5 layers, and a greedy choice
STEP_KERNELS = {"florence-2-mini": 90, "paligemma-mini": 142}
CHOICE_KERNELS = 32


@dataclass(frozen=True, slots=True)
class Card:
    """Dense 16-bit operations and bytes per second; source: NVIDIA's data sheets."""

    name: str
    operations: float
    bandwidth: float
    has_bfloat16: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one image of a model, with weights of 2 bytes."""

    name: str
    encoder_operations: float
    encoder_values: float  # read and written activations
    prefill_operations: float
    prefill_values: float
    weights: float  # decoder and head, which a step reads
    sequence_values: float  # keys and values of image and prompt, read once a sequence
    row_values: float  # keys and values of the answer
    num_kernels: int  # a step's, at most: all of the embedded model's, by layers
    num_beams: int = 1
    is_bfloat16: bool = False


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one image."""

    encoder: float
    prefill: float
    steps: float

    @property
    def images_per_s(self) -> float:
        return 1 / (self.encoder + self.prefill + self.steps)

    @property
    def longest(self) -> str:
        parts = {"encoder": self.encoder, "prefill": self.prefill, "steps": self.steps}
        return max(parts, key=parts.__getitem__)


CARDS = (
    Card("H100 SXM", 989e12, 3.35e12),
    Card("L4", 121e12, 0.3e12),
    Card("T4", 65e12, 0.32e12, has_bfloat16=False),
)


def _florence2_base(num_beams: int) -> Work:
    """Return the work of Florence-2-base: DaViT at 768 pixels, BART with 6 + 6 layers."""
    # positions, width and pairs of blocks of each stage; a block has 12 width² weights
    stages = ((192**2, 128, 1), (96**2, 256, 1), (48**2, 512, 9), (24**2, 1024, 1))
    width = 768
    num_positions = 592
    read = 640  # positions of a prefix in a captured step
    text_layer = 12 * width**2 * num_positions + 2 * num_positions**2 * width
    cross = 2 * width**2 * num_positions
    return Work(
        "Florence-2-base, greedy" if num_beams == 1 else f"Florence-2-base, {num_beams} beams",
        sum(2 * 24 * size**2 * num * pairs for num, size, pairs in stages),
        sum(2 * _DAVIT_WIDTHS * size * num * pairs for num, size, pairs in stages),
        2 * 6 * (text_layer + cross),
        6 * _BART_WIDTHS * width * num_positions,
        6 * 14 * width**2 + 51_289 * width,
        6 * 2 * width * read,
        6 * 2 * width * 64,
        STEP_KERNELS["florence-2-mini"] * 6 // 3,
        num_beams,
    )


def _paligemma(side: int) -> Work:
    """Return the work of PaliGemma: SigLIP with 27 layers, Gemma with 18."""
    num_image = (side // 14) ** 2
    num_positions = num_image + 16
    vision_layer = (4 * 1152**2 + 2 * 1152 * 4304) * num_image + 2 * num_image**2 * 1152
    layer = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 16_384
    text_layer = layer * num_positions + 2 * num_positions**2 * 2048
    return Work(
        f"PaliGemma-{side}, greedy",
        2 * 27 * vision_layer,
        27 * _SIGLIP_WIDTHS * 1152 * num_image,
        2 * 18 * text_layer,
        18 * _GEMMA_WIDTHS * 2048 * num_positions,
        18 * layer + 257_216 * 2048,
        18 * 2 * 256 * num_positions,
        18 * 2 * 256 * 64,
        STEP_KERNELS["paligemma-mini"] * 18 // 5,
        is_bfloat16=True,
    )


def times(work: Work, card: Card, rate: float = 1.0, bandwidth: float = 1.0) -> Times:
    """Return the times of one image at shares of the card's rate and bandwidth."""
    operations = card.operations * rate
    values = card.bandwidth * bandwidth / _BYTES
    num_sequences = _NUM_SLOTS // work.num_beams
    of_sequence = work.sequence_values + work.num_beams * work.row_values
    read = work.weights + num_sequences * of_sequence
    step = max(read / values, (work.num_kernels + CHOICE_KERNELS) * _KERNEL_S)
    return Times(
        work.encoder_operations / operations + work.encoder_values / values,
        work.prefill_operations / operations + work.prefill_values / values,
        _NUM_TOKENS * step / num_sequences,
    )


def limits_table() -> str:
    """Return what each model reaches on each card in Markdown, by arithmetic."""
    header = ["model", "card", "encoder, ms", "prefill, ms", "steps, ms"]
    header += ["images/s at full rates", "at 40 % and 70 %", "longest"]
    rows: list[list[str]] = []
    for work in (_florence2_base(1), _florence2_base(3), _paligemma(224), _paligemma(448)):
        for card in CARDS:
            if work.is_bfloat16 and not card.has_bfloat16:
                continue
            best = times(work, card)
            usual = times(work, card, *_USUAL)
            parts = [shown(1000 * each) for each in (usual.encoder, usual.prefill, usual.steps)]
            rates = [f"{each.images_per_s:.0f}" for each in (best, usual)]
            rows.append([work.name, card.name, *parts, *rates, usual.longest])
    return table(header, rows)

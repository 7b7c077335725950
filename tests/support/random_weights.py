"""Published configurations for checkpoints of random weights."""

from laboratory.bench.random_weights import PALIGEMMA_3B, florence2, paligemma

SHAPES = {
    "florence-2-large": florence2(1024, 256, 12, 4096),
    "paligemma-3b-mix-224": PALIGEMMA_3B,
    "paligemma-3b-pt-896": paligemma(896),
}

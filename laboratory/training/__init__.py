"""Training of the embedded checkpoints from scratch on rendered scenes.

    scenes -> pictures (parts, questions) -> examples (prompt, answer, the cells that each token
    mentions) -> losses -> model -> models/MODEL

pictures   scenes with the subjects that each answer mentions
answers    true answers in each family's format
examples   the batch of a step: images with the contents of their cells, prompts, answers
models     Florence-2 and PaliGemma in training: first weights, forward pass
losses     of answers, attention and auxiliary heads
loop       recipes, optimizers and the loop
masks      the VQ-VAE of PaliGemma's segmentation tokens
"""

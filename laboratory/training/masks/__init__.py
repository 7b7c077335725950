"""The VQ-VAE of PaliGemma's segmentation tokens, and its training."""

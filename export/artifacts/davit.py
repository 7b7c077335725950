"""DaViT, the vision tower of Florence-2, in the form that ONNX Runtime runs fastest: the same
weights and features.

transformers keeps images as (B, C, H, W) and transposes around every norm, attention and
feed-forward layer. ONNX Runtime runs Transpose and Split in one thread: a third of an image's
processor time that no other core shared. Here:

    tokens          rows (B, H * W, C) throughout; the transposes around a convolution merge with
                    ONNX Runtime's own
                    change to its blocked layout (nchwc_transformer.cc)
    convolutions    a depthwise convolution and its residual are one: 1 is added to the centre of
                    its kernel
    q, k, v         three products instead of one that is split
    for one image   window attention is ONNX Runtime's operator, and the products of channel
                    attention have no batch axis, so that ONNX Runtime merges their transposes with
                    them (matmul_transpose_fusion.cc). Patch embeddings are products, which the
                    export quantises, unlike a convolution

Shapes: B batch, W windows, S tokens of a window, C hidden, A heads or groups, D head size.
"""

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling

# the 3 x 3 kernel that returns its input
_RESIDUAL = functional.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1))


class FusedAttention(torch.autograd.Function):
    """Attention of queries, keys and values (W, S, C), exported as ONNX Runtime's operator."""

    @staticmethod
    def forward(
        _context: Any, query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float
    ) -> Tensor:
        """Compute what the operator does, for the trace."""
        return _products(query, key, value, num_heads, scale)

    @staticmethod
    def symbolic(graph: Any, query: Any, key: Any, value: Any, num_heads: int, scale: float) -> Any:
        name = "com.microsoft::MultiHeadAttention"
        return graph.op(name, query, key, value, num_heads_i=num_heads, scale_f=scale).setType(
            query.type()
        )


_fused_attention: Any = FusedAttention  # `apply` has types from torch 2.15 on


class TokenRowsDavit(nn.Module):
    """The layers of `Florence2VisionBackbone`; `is_for_one_image`: a batch is one image."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.config = tower.config
        self.is_for_one_image = False

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Return features (B, C, H, W) of the last stage."""
        features = pixel_values
        for embed, blocks in zip(self.tower.convs, self.tower.blocks, strict=True):
            features = self._embed(embed, features)
            shape_chw = list(map(int, features.shape[1:]))
            rows = features.permute(0, 2, 3, 1).flatten(1, 2)
            for block in blocks:
                rows = self._block(block.spatial_block, rows, shape_chw)
                rows = self._block(block.channel_block, rows, shape_chw)
            features = _to_images(rows, shape_chw)
        return BaseModelOutputWithPooling(last_hidden_state=features)

    def _embed(self, embed: Any, images: Tensor) -> Tensor:
        # Without a norm the images are pixels: 8 % of Florence-2-base's operations in embeddings.
        if self.is_for_one_image and embed.pre_norm:
            normed = embed.norm(images.permute(0, 2, 3, 1))
            return _multiply_patches(embed.conv, normed).permute(0, 3, 1, 2)
        features: Tensor = embed(images)
        return features

    def _block(self, block: Any, rows: Tensor, shape_chw: list[int]) -> Tensor:
        rows = _convolve(block.conv1, rows, shape_chw)
        normed = block.norm1(rows)
        if hasattr(block, "window_attn"):
            rows = rows + self.window_attention(block.window_attn, normed, *shape_chw[1:])
        else:
            rows = rows + self.channel_attention(block.channel_attn, normed)
        rows = _convolve(block.conv2, rows, shape_chw)
        fed_forward: Tensor = block.ffn(block.norm2(rows))
        return rows + fed_forward

    def window_attention(self, attention: Any, rows: Tensor, height: int, width: int) -> Tensor:
        side = attention.window_size
        channels = attention.dim
        bottom = -height % side
        right = -width % side
        images = rows.view(-1, height, width, channels)
        if bottom or right:
            images = functional.pad(images, (0, 0, 0, right, 0, bottom))
        grid = ((height + bottom) // side, (width + right) // side)
        windows = images.view(-1, grid[0], side, grid[1], side, channels).permute(0, 1, 3, 2, 4, 5)
        query, key, value = _queries_keys_values(
            attention.qkv, windows.reshape(-1, side * side, channels)
        )
        num_heads = attention.num_heads
        scale = attention.scale
        if self.is_for_one_image:
            attended = _fused_attention.apply(query, key, value, num_heads, scale)
        else:
            attended = _products(query, key, value, num_heads, scale)
        projected: Tensor = attention.proj(attended)
        windows = projected.view(-1, *grid, side, side, channels).permute(0, 1, 3, 2, 4, 5)
        images = windows.reshape(-1, grid[0] * side, grid[1] * side, channels)
        if bottom or right:
            images = images[:, :height, :width]
        return images.reshape(-1, height * width, channels)

    def channel_attention(self, attention: Any, rows: Tensor) -> Tensor:
        """Attend from channels to channels of a group, over all tokens."""
        num_tokens, num_channels = map(int, rows.shape[1:])
        groups = (attention.groups, num_channels // attention.groups)
        leading = (num_tokens,) if self.is_for_one_image else (-1, num_tokens)
        query, key, value = _queries_keys_values(attention.qkv, rows)
        query, key, value = (part.reshape(*leading, *groups) for part in (query, key, value))
        # Scaled before the product, whose sums over all tokens leave the range of float16.
        # (B, A, D, D)
        scores = _heads_first(query * num_tokens**-0.5).transpose(-2, -1) @ _heads_first(key)
        attended = _heads_first(value) @ scores.softmax(-1).transpose(-2, -1)  # (B, A, tokens, D)
        projected: Tensor = attention.proj(
            _heads_first(attended).reshape(-1, num_tokens, num_channels)
        )
        return projected


def _convolve(conv: nn.Conv2d, rows: Tensor, shape_chw: list[int]) -> Tensor:
    """Return a depthwise convolution of `rows` plus `rows`."""
    images = _to_images(rows, shape_chw)
    convolved = functional.conv2d(
        images, conv.weight + _RESIDUAL, conv.bias, padding=1, groups=shape_chw[0]
    )
    return convolved.permute(0, 2, 3, 1).flatten(1, 2)


def _multiply_patches(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """Return the convolution of one image, (1, H, W, C), as a product of its patches."""
    height, width, channels = map(int, images.shape[1:])
    num_tokens = height * width
    # A further row, of zeros, is the padding.
    rows = torch.cat([images.flatten(1, 2), torch.zeros(1, 1, channels)], 1)
    places = np.arange(num_tokens).reshape(height, width)
    padded = np.pad(places, int(conv.padding[0]), constant_values=num_tokens)
    stride = conv.stride[0]
    patches = sliding_window_view(padded, conv.kernel_size)[::stride, ::stride]
    values = rows.index_select(1, torch.from_numpy(patches.flatten()))
    # Reshaped, not flattened: the trace folds it into a constant, as only constants are quantised.
    weight = conv.weight.permute(0, 2, 3, 1).reshape(conv.out_channels, -1)
    return functional.linear(values.view(1, *patches.shape[:2], -1), weight, conv.bias)


def _to_images(rows: Tensor, shape_chw: list[int]) -> Tensor:
    channels, height, width = shape_chw
    return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)


def _queries_keys_values(linear: nn.Linear, rows: Tensor) -> list[Tensor]:
    biases = (None,) * 3 if linear.bias is None else linear.bias.chunk(3)
    return [
        functional.linear(rows, weight, bias)
        for weight, bias in zip(linear.weight.chunk(3), biases, strict=True)
    ]


def _products(query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float) -> Tensor:
    """Return the attention (W, S, C) of queries, keys and values of that shape."""
    num_tokens, num_channels = map(int, query.shape[1:])
    shape = (-1, num_tokens, num_heads, num_channels // num_heads)
    query = _heads_first((query * scale).view(shape))
    key = _heads_first(key.view(shape))
    value = _heads_first(value.view(shape))
    attended = (query @ key.transpose(-2, -1)).softmax(-1) @ value  # (W, A, S, D)
    return _heads_first(attended).reshape(-1, num_tokens, num_channels)


def _heads_first(rows: Tensor) -> Tensor:
    """Swap the axes of tokens and heads: (…, S, A, D) <-> (…, A, S, D)."""
    return rows.transpose(-3, -2)

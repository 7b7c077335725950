"""Operations of both families."""

import torch

from runners.models.layers import as_bias


def test_a_mask_is_a_bias_with_rows_at_aligned_addresses_on_every_device() -> None:
    for device in ("cpu", "meta"):
        is_visible = (torch.arange(13) < torch.tensor([[3], [13]]))[:, None, None].to(device)
        bias = as_bias(is_visible, torch.float16)
        assert (bias.shape, bias.dtype) == ((2, 1, 1, 13), torch.float16)
        assert all(step % 8 == 0 for step in bias.stride()[:-1])
    assert as_bias(torch.tensor([[True, False]]), torch.float32).tolist() == [[0.0, -torch.inf]]

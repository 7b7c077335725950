import torch

from laboratory.training.data.batches import NO_TOKEN, SequenceBatch
from laboratory.training.runs.losses import answer_loss, attention_loss, soft_targets

NUM_CELLS = 4
LOCATION_IDS = torch.arange(10, 30)  # 20 bins
HEAD = torch.eye(40)  # states are logits


def batch(answer_ids: list[int], positions: list[float], steps: list[int]) -> SequenceBatch:
    num = len(answer_ids)
    return SequenceBatch(
        image_index=torch.zeros(1, dtype=torch.long),
        prompt_ids=torch.zeros(1, 1, dtype=torch.long),
        num_prompt=torch.ones(1, dtype=torch.long),
        answer_ids=torch.tensor([answer_ids]),
        mentioned=torch.zeros(1, num, NUM_CELLS, dtype=torch.bool),
        coordinates=torch.full((1, num), -1),
        positions=torch.tensor([positions]),
        steps=torch.tensor([steps]),
        places=torch.full((1, num), -1),
        ranks=torch.zeros(1, NUM_CELLS, dtype=torch.long),
    )


def certain(ids: list[int]) -> torch.Tensor:
    logits = torch.full((1, len(ids), 40), -100.0)
    logits[0, range(len(ids)), ids] = 100.0
    return logits


def test_soft_targets_are_a_distribution_around_the_position() -> None:
    targets = soft_targets(torch.tensor([7.3]), 20, 1.0)
    assert torch.isclose(targets.sum(), torch.tensor(1.0))
    assert targets.argmax() == 7


def test_certain_right_answer_has_no_loss_whatever_the_padding() -> None:
    written = batch([3, 18, NO_TOKEN], [0.0, 8.0, 0.0], [0, 8, 0])
    plain, location = answer_loss(certain([3, 18, 5]), HEAD, written, LOCATION_IDS, sigma=0.05)
    assert plain < 1e-4
    assert location < 1e-4


def test_soft_target_at_the_edge_uses_existing_bins_only() -> None:
    written = batch([10], [0.0], [8])
    _, location = answer_loss(torch.zeros(1, 1, 40), HEAD, written, LOCATION_IDS, sigma=2.0)
    assert torch.isfinite(location)


def test_position_between_two_grid_bins_has_both_as_target() -> None:
    written = batch([18], [12.0], [8])
    losses = [
        answer_loss(certain([i]), HEAD, written, LOCATION_IDS, sigma=0.3)[1] for i in (18, 26, 22)
    ]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[2] > losses[0]  # a bin beside the grid is wrong


def test_attention_loss_is_zero_on_mentioned_cells_and_high_elsewhere() -> None:
    written = batch([3], [0.0], [0])
    written.mentioned[0, 0, 1] = True
    there = torch.zeros(1, 1, 2, NUM_CELLS)
    elsewhere = torch.zeros(1, 1, 2, NUM_CELLS)
    there[0, 0, 1, 1] = 1.0  # one head is enough
    elsewhere[..., 0] = 1.0
    assert attention_loss([there], written) == 0
    assert attention_loss([elsewhere], written) > 10


def test_last_layer_counts_a_coordinate_by_its_own_head() -> None:
    written = batch([3], [0.0], [0])
    written.mentioned[0, 0, 1] = True
    written.coordinates[0, 0] = 1
    attention = torch.zeros(1, 1, 2, NUM_CELLS)
    attention[0, 0, 0, 1] = 1.0  # head 0 looks there, coordinate 1 is head 1's
    assert attention_loss([attention], written) > 10


def test_answer_without_mentions_has_no_attention_loss() -> None:
    assert attention_loss([torch.rand(1, 1, 2, NUM_CELLS)], batch([3], [0.0], [0])) == 0

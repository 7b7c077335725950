import pytest
import torch
from torch import nn

from laboratory.training.runs.optimizer import Rates, make_optimizers, orthogonalized


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 16, 16), (2, 32, 8), (2, 8, 32)):
        values = torch.linalg.svdvals(
            orthogonalized(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        )
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_every_parameter_has_exactly_one_optimizer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 8), nn.LayerNorm(8)
    )
    table = nn.Embedding(10, 8)
    muon, adam = make_optimizers(
        {"language": [model, table], "heads": [nn.Linear(8, 2)]}, table.weight, Rates()
    )
    by_muon = [id(each) for group in muon.param_groups for each in group["params"]]
    by_adam = [id(each) for group in adam.param_groups for each in group["params"]]
    assert set(by_muon) == {id(model[0].weight), id(model[2].weight)}
    assert len(by_adam) == len(set(by_adam)) == 9
    assert not set(by_muon) & set(by_adam)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_fits_a_matrix(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    target = torch.randn(8, 8)
    muon, _ = make_optimizers({"language": [layer]}, nn.Embedding(1, 1).weight, Rates(), dtype)
    for step in range(200):
        muon.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        loss = (layer.weight - target).square().mean()
        torch.autograd.backward(loss)
        muon.step()
        muon.zero_grad()
    assert loss < 0.01

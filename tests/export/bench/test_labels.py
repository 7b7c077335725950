import pytest

from export.bench.labels import Model, accuracy, asked_labels, loaded, times
from tests.support.export_cli import EMBEDDED, ModelStore


@pytest.mark.parametrize("model_id", EMBEDDED)
def test_both_ways_find_objects_and_are_timed(model_id: str, exported: ModelStore) -> None:
    with loaded(model_id, exported.newest(model_id)) as (model, encoder):
        (present, absent) = asked_labels(encoder, model.entry.resolution, range(12)).values()
        assert all(
            set(one.labels) < set(other.labels) for one, other in zip(present, absent, strict=True)
        )
        check_prompts(model)
        assert accuracy(model, "one prompt each", present)["f1_at_50"] > 0.9
        assert accuracy(model, "one prompt", absent)["f1_at_50"] > 0.5
        timed = times(model, present[:2], num_clients=2)
        assert all(median > 0 for median in timed["median_ms"].values())


def check_prompts(model: Model) -> None:
    labels = ("red circle", "blue star")
    numbers = {
        way: len(list(model.prompts(way, labels)[2])) for way in ("one prompt", "one prompt each")
    }
    assert numbers == {"one prompt": 1, "one prompt each": 2}

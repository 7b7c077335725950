from wire.runner_messages import FoundFeatures


def test_features_of_the_cache_took_no_time() -> None:
    found = FoundFeatures(outcome="hit")
    assert (found.encode_s, found.queue_s) == (0, 0)

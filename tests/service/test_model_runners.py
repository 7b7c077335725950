from service.model_runners import decoder_options
from service.settings import Settings


def test_settings_of_a_decoder_reach_it() -> None:
    options = decoder_options(Settings(decoder_max_batch_size=5, decoder_max_positions=2048, decoder_threads=3))
    assert (options.limits.num_slots, options.max_positions, options.num_threads) == (5, 2048, 3)

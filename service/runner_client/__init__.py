"""The runner of a model as the gateway calls it: channel, retries, replay of streams."""

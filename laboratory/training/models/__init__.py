"""The models in training: configurations, first weights and forward passes of both families."""

"""All that gateway, runners, export and offline run share: messages, pixels, the channel to a
runner, artifacts and telemetry.

It imports nothing of ours, and neither torch nor, at import, ONNX Runtime.
"""

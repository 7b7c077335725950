"""Outputs of an export: the vision encoder as ONNX, the decoder's weights, and the store that holds
them.
"""

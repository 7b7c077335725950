"""Models and questions of `make bench`: `python -m export.bench FOLDER` prepares them.

models          checkpoints, the bench's own catalog, and their artifacts
encoder_graphs  vision encoders as torch exports them, for a peer
questions       images, and questions both as fields of our API and as the model's exact prompt
steps           time of a decode step in the scheduler

FOLDER/checkpoints/ID/   for the other servers, which use transformers
FOLDER/encoders/ID.onnx  for the server that encodes images with ONNX Runtime
FOLDER/catalog.yaml      for our service; the artifacts are in the store of BENTOML_HOME
FOLDER/images/PX/N.png   rendered scenes
FOLDER/material.json     the questions for each model, read by loadtest
"""

"""Models and questions of `make bench`: `python -m laboratory.bench.material FOLDER` prepares them.

models          checkpoints, the bench's own catalog, and their artifacts
encoder_graphs  vision encoders as torch exports them, for a peer
questions       images, and questions both as fields of our API and as the model's exact prompt
records         the records of material.json

FOLDER/checkpoints/ID/   for the other servers, which use transformers
FOLDER/encoders/ID.onnx  for the server that encodes images with ONNX Runtime
FOLDER/catalog.yaml      for our service; the artifacts are in the store of BENTOML_HOME
FOLDER/images/PX/N.png   rendered scenes
FOLDER/material.json     the questions for each model, read by the benchmark
"""

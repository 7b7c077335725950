"""What `make bench` drives servers with (python -m export.bench FOLDER).

models      checkpoints, the bench's own catalog, and their artifacts
questions   images, and questions as fields of our API and as the exact prompt of the model

FOLDER/checkpoints/ID/   what a peer loads with transformers
FOLDER/catalog.yaml      the same models for our service, whose artifacts are in the store of BENTOML_HOME
FOLDER/images/PX/N.png   rendered scenes
FOLDER/material.json     which model is asked what; `loadtest/material.py` reads it
"""

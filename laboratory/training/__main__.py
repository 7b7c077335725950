"""Train an embedded checkpoint from scratch: `python -m laboratory.training MODEL`.

The weights of models/MODEL are replaced at the end; its configuration, vocabulary and image
processor stay.
"""

import argparse
import copy

import torch

from export.checkpoints.bases import ROOT
from laboratory.training.loop import RECIPES, make_training


def main() -> None:
    """Train one model and write its weights in half precision, with their configuration."""
    parser = argparse.ArgumentParser("python -m laboratory.training", description=__doc__)
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    training = make_training(arguments.model, arguments.device, seed=0)
    training.run()
    model = copy.deepcopy(training.trainee.model).to("cpu", torch.float16)
    model.save_pretrained(ROOT / "models" / arguments.model)


if __name__ == "__main__":
    main()

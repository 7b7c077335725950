"""Training runs: recipes, losses, optimizer, the loop, validation, and the files of a run."""

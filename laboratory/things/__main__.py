"""Fetch fonts and photographs into a folder: `python -m laboratory.things FOLDER`."""

import argparse
from pathlib import Path

from laboratory.things.material import fetch_material

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m laboratory.things", description=__doc__)
    parser.add_argument("folder", type=Path)
    fetch_material(parser.parse_args().folder)

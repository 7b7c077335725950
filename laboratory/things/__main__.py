"""Fetch fonts and photographs into a folder: `python -m laboratory.things FOLDER`."""

import sys
from pathlib import Path

from laboratory.things.material import fetch_material

if __name__ == "__main__":
    fetch_material(Path(sys.argv[1]))

"""Images per second of `python -m offline` and of the service, on the same images, in turns.

    python -m loadtest.offline_ratio [--model ID] [--task ID] [--images N] [--rounds N]

Clients in a closed loop send the images to the service over REST, more at a time than its decoder has slots. Both run
without their start, with the same settings, and without a cache of image features: no image is known. The model must be
exported (`make export`).
"""

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp

from loadtest.figures import shown
from loadtest.load.traffic.scenes import scene_files
from loadtest.processes import ROOT, Launch, free_port, running

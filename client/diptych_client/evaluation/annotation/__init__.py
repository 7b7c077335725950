"""Labels of a folder that one model proposes, or two that must agree, and what proves them.

consensus.py   labels that two models agree on; a confidence for each proposed label
guarantee.py   proves by labelled images which confidence is enough
shift.py       finds images unlike the labelled ones

The last two need the extra `evaluate`; cli/guaranteed.py puts them together.
"""

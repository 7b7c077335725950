"""The report of an evaluation: report.html, report.md and report.json from the same tables.

tables.py    the tables
plots.py     inline SVG that follows the page's colours
gallery.py   the images with truth and answers, as data for page.js
page.py      one HTML file with style, script, plots and images in it; asks no other host
index.py     one page over several reports
"""

from diptych_client.evaluation.report.gallery import Gallery
from diptych_client.evaluation.report.page import report_files, write_report
from diptych_client.evaluation.report.tables import sentences

__all__ = ["Gallery", "report_files", "sentences", "write_report"]

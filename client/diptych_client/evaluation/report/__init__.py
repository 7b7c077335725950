"""The report of an evaluation: report.html, report.md and report.json from the same tables.

tables.py    the tables and sentences, Markdown, JSON
gallery.py   the images with truth and answers, as data for templates/page.js
page.py      the pages, by Jinja2's templates: style, script, plots and images are in one file
"""

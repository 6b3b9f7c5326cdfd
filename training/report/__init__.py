"""One self-contained HTML page on a training output: ``python jobs/report.py training=URL output=FILE.html``."""

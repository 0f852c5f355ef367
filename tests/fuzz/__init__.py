"""Fuzz targets, their corpus, and the run with atheris (scripts/soak fuzz)."""

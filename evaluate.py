"""Scores predictions against truth: python evaluate.py PREDICTIONS TRUTH [--json FILE]."""

from geopose.commands import evaluate

if __name__ == "__main__":
    evaluate()

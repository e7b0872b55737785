"""Predicts the test images with the models of a config and packs the submission."""

from geopose.commands import submit

if __name__ == "__main__":
    submit()

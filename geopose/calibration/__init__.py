"""Gains that raise the score of a network: fitted on images with truth, kept in its file."""

"""Checkpoints that are elsewhere: downloaded once, checked, kept."""

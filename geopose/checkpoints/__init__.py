"""Checkpoint files: found or fetched, read without running code, built, averaged, exported."""

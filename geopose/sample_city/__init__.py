"""Procedural SYNTHETIC oblique cities with exact height and vertical flow."""

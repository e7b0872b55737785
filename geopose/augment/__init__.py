"""Augmentations that keep heights, flow and ground sample distance exact."""

"""Tests of geopose/products."""

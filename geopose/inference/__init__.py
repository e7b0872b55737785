"""Running trained models over images: configuration, views, ensembles, the loop."""

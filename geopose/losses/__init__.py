"""Training losses: `terms` compare one output with one target, `total` is their weighted sum."""

"""Batches of samples: loaders, their order, their workers, mixup."""

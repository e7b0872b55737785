"""What the tables of a data directory say of images that are known by their file names."""

"""Files, layouts, folds and samples."""

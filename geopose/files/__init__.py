"""Files of every kind: written whole, locked, compared, and where they may be written."""

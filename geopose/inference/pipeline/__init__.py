"""One process's share of a run: decoded ahead, predicted, written in the background."""

"""What predictions become: challenge files, archives, pictures."""

import os

from geopose.checkpoints.remote.fetch import checkpoint_cache

# matplotlib's list of fonts belongs into the cache that is ours; it looks for it at its import.
os.environ.setdefault("MPLCONFIGDIR", str(checkpoint_cache() / "matplotlib"))

"""The processes of a run: how they are started and what they agree on."""

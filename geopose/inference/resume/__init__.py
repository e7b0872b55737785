"""What is finished of a run, and what its results follow from, so that another run goes on."""

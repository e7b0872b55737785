"""A trained network in 8 bits: what it is calibrated on, how it is made, what it costs in score."""

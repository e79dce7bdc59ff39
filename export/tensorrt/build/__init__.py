"""Building engines: networks, profiles and targets. Needs no GPU."""

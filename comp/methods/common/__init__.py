"""What several methods do alike: pruning parameters by ranking, and tokens at fixed places."""

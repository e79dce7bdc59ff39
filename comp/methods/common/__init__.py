"""Parts that several methods share: pruning parameters by rank, and tokens at fixed places."""

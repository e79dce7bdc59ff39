"""Training the embedded models from scratch (extra ``[train]``)."""

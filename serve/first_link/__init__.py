"""The proof's first link from the side of users: the engines of ``serve``, and all links of a run."""

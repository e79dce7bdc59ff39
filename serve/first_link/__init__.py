"""The first link of verification on the users' side: the engines of ``serve``, and a run's links."""

"""Property tests try the same cases every time: a failure is of the change at hand."""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

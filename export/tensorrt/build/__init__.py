"""Build engines: networks, profiles and targets. ``tensorrt_rtx`` needs no GPU for it."""

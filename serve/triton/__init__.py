"""NVIDIA Triton: model repositories of artifacts, and the Python model in them that generates."""

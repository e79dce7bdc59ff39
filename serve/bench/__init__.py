"""Speed, memory and size of artifacts, measured in turn."""

"""The graphs of each family, and a family's part of its artifact."""

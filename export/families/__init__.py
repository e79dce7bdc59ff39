"""The graphs of each family, and what a family contributes to its artifact."""

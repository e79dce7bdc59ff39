"""One adapter file for each family of models; the algorithm never mentions a family."""

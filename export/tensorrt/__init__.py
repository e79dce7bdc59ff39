"""TensorRT engines of the graphs of a ``standard`` artifact: names, manifests, checks."""

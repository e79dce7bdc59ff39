"""CLIP's graphs: an image encoder and a text encoder."""

"""BLIP's graphs: an image encoder and the text models of four tasks."""

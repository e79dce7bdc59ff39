"""Read the files of a checkpoint besides weights: configuration, tokenizer, template, images."""

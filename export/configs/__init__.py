"""What an exporter reads of a checkpoint besides weights: configuration, tokenizer, template, images."""

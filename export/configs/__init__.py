"""What an export reads from a checkpoint besides weights: configuration, tokenizer, template, images."""

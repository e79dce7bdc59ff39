"""Parts that CLIP and BLIP share: pre-norm encoders with masks, token dropping and observers."""

"""What CLIP and BLIP share: pre-norm encoders with masks, dropped tokens and observers."""

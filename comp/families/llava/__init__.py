"""LLaVA-1.5: CLIP tower, projector and Llama decoder."""

"""SmolVLM and Idefics3: tiles, SigLIP tower, pixel shuffle and Llama decoder."""

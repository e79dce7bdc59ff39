"""LLaVA's graphs: vision encoder, token embedding, and one decoder for both phases."""

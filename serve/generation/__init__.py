"""Generate text: options, sampling, decoding, events and results."""

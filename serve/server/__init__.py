"""An HTTP server over artifacts, which speaks OpenAI's API."""

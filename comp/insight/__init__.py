"""What a run shows of the method: shares of modes, tokens that decide, and how stable ranks are."""

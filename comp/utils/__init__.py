"""Small tools without a subject of their own: files, locks, console, JSON, machine, compute."""

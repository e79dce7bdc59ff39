"""What is measured beside ours: one file each, with what loads it and answers."""

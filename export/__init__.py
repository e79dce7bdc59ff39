"""From a checkpoint and a plan to files that run elsewhere, with their proof."""

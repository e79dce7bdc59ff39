"""The commands ``cut``, ``plan``, ``profile`` and ``tensorrt``; those that need ``serve`` too are there."""

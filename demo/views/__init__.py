"""One view a task: the request on the left, both models' results on the right.

``comp.registry.tasks.TASKS`` names the function that builds each.
"""

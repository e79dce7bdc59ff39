"""Registries of model families, tasks and pruning methods. Loads no torch.

A record names its code in each package as ``module:attribute``, which the package imports when it needs it
(``comp.registry.code.resolve``). Nothing in this package imports a family or a method. Tests compare the
records with ``comp/families`` and ``comp/methods``.
"""

"""What there is to choose from: families of models, tasks and pruning methods, described without torch.

A record names its code in each package as ``module:attribute``, which the package imports when it needs it
(``comp.registry.code.resolve``): nothing in this package imports a family or a method. Tests hold the
records against ``comp/families`` and ``comp/methods``.
"""

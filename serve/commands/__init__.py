"""The verbs that need engines: ``onnx``, ``verify``, ``eval``, ``bench``, ``run`` and ``study``.

Options and printing, no algorithm. Heavy modules are imported in the commands: ``--help`` answers at once.
"""

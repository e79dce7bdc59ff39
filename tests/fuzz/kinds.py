"""The kinds of hostile input, and the number of trials of each.

A changed input may be as valid as the original: another plan, other settings. Then the right answer is
that of an independent reading of the same input: transformers on the changed
checkpoint, a masked transformers model for a plan, a bare ONNX Runtime for graphs.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.base import Base
from tests.fuzz.making import Trial
from tests.fuzz.of_artifacts import files_of_artifact, graphs, manifest, run_record
from tests.fuzz.of_checkpoints import plans, settings, template, tokenizer, weights
from tests.fuzz.of_requests import images, options, prompts

KINDS: dict[str, tuple[Callable[[Random, Base, Path], Trial], int]] = {
    "files of an artifact": (files_of_artifact, 200),
    "manifest": (manifest, 450),
    "graphs": (graphs, 200),
    "settings of a checkpoint": (settings, 350),
    "tokenizer": (tokenizer, 150),
    "chat template": (template, 100),
    "weights": (weights, 150),
    "plans": (plans, 250),
    "run.json": (run_record, 100),
    "images": (images, 600),
    "prompts": (prompts, 300),
    "options of generation": (options, 150),
}

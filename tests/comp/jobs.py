"""Jobs for pruning methods on small random models of every family."""

from comp.data.emoji_scenes.captions import CaptionExamples
from comp.search.job import MethodOptions, PruningJob
from comp.search.stage import ImportanceOptions
from comp.training.data import PruningData
from comp.training.trainer import StepOptions
from comp.utils.compute import Compute
from comp.utils.progress import Progress
from tests.comp.small import questions, small_adapter
from tests.comp.small_blip import examples_of, random_blip
from tests.comp.small_clip import random_clip

PARAMETERS = {
    "llava": ("language_parameters", "vision_parameters"),
    "clip": ("vision_parameters", "language_parameters"),
    "blip": ("vision_parameters", "language_parameters", "cross_parameters"),
}


def small_job(family, folder, rate, align=8, stages=3, steps_per_stage=2, modes=None):
    """All parameters of a random model; 8 examples each to train, calibrate and validate on."""
    adapter, some = {
        "llava": lambda: (small_adapter(), questions),
        "clip": lambda: (random_clip(), _captioned),
        "blip": lambda: (random_blip("statement"), lambda count: examples_of("statement", count)),
    }[family]()
    train = some(8)
    batches = [adapter.collate(train[:4]), adapter.collate(train[4:])]
    options = MethodOptions(
        rate=rate,
        modes=PARAMETERS[family] if modes is None else modes,
        stages=stages,
        steps_per_stage=steps_per_stage,
        align=align,
        importance=ImportanceOptions(min_channels=align),
        training=StepOptions(batch_size=4, learning_rate=1e-3),
    )
    adapter.train_parts({"vision", "language"})
    data = PruningData(train, batches, batches)
    folder.mkdir(exist_ok=True)
    compute = Compute("cpu", "float32")
    return PruningJob(adapter, compute, data, options, "small", folder, Progress(quiet=True))


def _captioned(count):
    data = CaptionExamples("validation", count)
    return [data[number] for number in range(count)]

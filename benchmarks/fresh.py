"""Run a function in a fresh process: its memory is freed afterwards, and its peak memory is its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from PIL import Image

from contestants import CONTESTANTS
from rivals.base import BenchSettings, Stage
from run_files import RunFiles, Which
from serve.bench.cold_start import peak_rss_mb

T = TypeVar("T")


def in_fresh_process(function: Callable[..., T], *arguments: object) -> T:
    """Run a module's function in a fresh process and return its result; exceptions are raised here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_of(
    name: str, which: Which, files: RunFiles, settings: BenchSettings, image: Image.Image
) -> float:
    """Peak resident memory in MiB of a process that loads a contestant and answers once."""
    CONTESTANTS[name](Stage(files, settings), which).answer(image)
    return peak_rss_mb()

"""The class of the model ``comp_export``; only lmms-eval imports this module."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from comp.errors import CompExportError
from comp.utils.install import install_hint
from serve.evaluation.scores import CHUNK
from serve.generation.options import GenerationOptions
from serve.generation.results import Generation
from serve.lmms.answering import engine_for, pictures_of
from serve.lmms.settings import ModelSettings

try:
    from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise CompExportError(
        f"lmms-eval cannot be loaded ({error}): {install_hint('lmms')}"
    ) from error


class CompExport(lmms):
    """An artifact of a run, answering greedily through ``serve.load``.

    The task's text is the user's turn of the checkpoint's chat template, which places the image, as in
    lmms-eval's ``llava_hf``. Tasks take their default prompts for it.
    """

    is_simple = True

    def __init__(
        self,
        batch_size: int | str | None = None,
        max_batch_size: int | str | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        """Take ``--model_args`` (``ModelSettings``) and lmms-eval's own three.

        Raises:
            CompExportError: an argument is refused by name, the artifact does not answer questions, or
                there are several processes.
        """
        super().__init__()
        if max_batch_size is not None:
            raise CompExportError("--max_batch_size is for automatic sizes: give --batch_size N")
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes != "1":
            raise CompExportError(
                f"{processes} processes: comp_export runs in one, start lmms-eval without a launcher"
            )
        given = {"batch_size": batch_size, "device": device, **arguments}
        self._settings = ModelSettings.of(given)
        self._engine = engine_for(self._settings)

    @property
    def batch_size(self) -> int:
        return self._settings.batch_size

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every question, those of equal options and length together, up to the batch size.

        An answer ends at the checkpoint's end token, before a string of ``until``, or after
        ``max_new_tokens``.

        Raises:
            CompExportError: a task samples, or a question shows what the model does not take: videos, or
                other numbers of pictures than the model has positions for.
        """
        options = [self._options(request) for request in requests]
        answers: dict[int, GenerationResult] = {}
        with tqdm(total=len(requests), desc="Model Responding") as bar:
            for rows in _alike(options):
                questions = [self._question(requests[row]) for row in rows]
                answered = self._engine.generate_batch(questions, options[rows[0]], self.batch_size)
                for row, answer in zip(rows, answered, strict=True):
                    answers[row] = _result(answer)
                    context, wanted = requests[row].args[:2]
                    self.cache_hook.add_partial("generate_until", (context, wanted), answer.text)
                bar.update(len(rows))
        return [answers[row] for row in range(len(requests))]

    def _options(self, request: Instance) -> GenerationOptions:
        _, wanted, _, _, task, _ = request.args
        return self._settings.generation(wanted, task)

    def _question(self, request: Instance) -> tuple[Sequence[Any], str]:
        """Pictures and text of a request."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        show: Callable[[Any], Any] = doc_to_visual or (lambda doc: [])
        where = f"question {doc_id} of {task}"
        return pictures_of(show(doc), self._settings.images, where), context

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse: engines give the likeliest tokens, not the likelihood of a given text."""
        raise CompExportError(
            f"{_tasks(requests)}: comp_export generates and gives no likelihoods; take a variant of the task "
            "whose output_type is generate_until (seedbench in place of seedbench_ppl)"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse: an engine answers one question."""
        raise CompExportError(
            f"{_tasks(requests)}: comp_export answers one question at a time, no rounds"
        )


def _alike(options: Sequence[GenerationOptions]) -> Iterator[list[int]]:
    """Places of equal options, in chunks whose pictures fit into memory."""
    groups: dict[GenerationOptions, list[int]] = {}
    for place, each in enumerate(options):
        groups.setdefault(each, []).append(place)
    for places in groups.values():
        for first in range(0, len(places), CHUNK):
            yield places[first : first + CHUNK]


def _result(answer: Generation) -> GenerationResult:
    tokens = TokenCounts(answer.prompt_tokens, len(answer.token_ids))
    return GenerationResult(answer.text, tokens)


def _tasks(requests: Sequence[Instance]) -> str:
    """Names of the tasks of these requests."""
    return ", ".join(dict.fromkeys(str(request.task_name) for request in requests))

"""Refuse settings of ``generation_config.json`` that change greedy answers: engines ignore them."""

from pathlib import Path
from typing import Any

from comp.checkpoints.stops import AGAIN, GENERATION
from comp.errors import CompExportError
from comp.utils.json_files import read_object

# Each with the values that do not change answers. Sampling and beams are options of the request.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "sequence_bias": ({}, []),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "stop_strings": ([],),
    "watermarking_config": (),
    "token_healing": (False,),
}


def check_greedy(directory: Path) -> None:
    """Refuse a LLaVA whose greedy answers in transformers depend on more than logits and stop tokens.

    Args:
        directory: directory of the checkpoint.

    Raises:
        CompExportError: names file, field and value.
    """
    path = directory / GENERATION
    if not path.is_file():
        return
    for name, value in read_object(path, AGAIN).items():
        neutral = NEUTRAL.get(name)
        if neutral is not None and value is not None and value not in neutral:
            raise CompExportError(
                f"{path}: {name} is {str(value)[:80]!r}, by which transformers gives other answers than the "
                "model's likeliest tokens, and engines do not: take it out of the file to have the "
                "likeliest tokens in both"
            )

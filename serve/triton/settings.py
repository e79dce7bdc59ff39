"""Settings of a generating model: in ``config.pbtxt`` as parameters, where a user may edit them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from comp.errors import CompExportError
from serve.server.models import Limits

GIB = 2**30


@dataclass(frozen=True)
class GeneratorSettings:
    """Limits of a generating model, and its defaults; as the options of ``comp-export serve``.

    Attributes:
        max_num_seqs: most answers that run together.
        max_queue: most requests that wait.
        max_model_len: most tokens of a prompt with its answer; 0: the model's positions.
        cache_memory: GiB for the key/value caches of the answers.
        prefix_memory: GiB for the caches of earlier prompts.
        max_new_tokens: longest answer of a request that names none.
        max_images: most images of a request.
        threads: of the CPU; 0: all cores.
        seed: of the draws of requests that have none.
    """

    max_num_seqs: int = 16
    max_queue: int = 128
    max_model_len: int = 0
    cache_memory: float = 2.0
    prefix_memory: float = 0.5
    max_new_tokens: int = 512
    max_images: int = 16
    threads: int = 0
    seed: int = 0

    @property
    def limits(self) -> Limits:
        """The limits of the model's worker."""
        return Limits(
            rows=self.max_num_seqs,
            queue=self.max_queue,
            max_model_len=self.max_model_len or None,
            cache_bytes=int(self.cache_memory * GIB),
            prefix_bytes=int(self.prefix_memory * GIB),
        )

    def parameters(self) -> dict[str, str]:
        """The settings as parameters of ``config.pbtxt``."""
        return {each.name: str(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def of_config(cls, text: str) -> "GeneratorSettings":
        """Read the parameters of a configuration, given as Triton's JSON.

        Raises:
            CompExportError: one is not a number, or negative; names it.
        """
        found: Mapping[str, Any] = json.loads(text).get("parameters", {})
        values: dict[str, float] = {}
        for each in fields(cls):
            if each.name not in found:
                continue
            word = found[each.name]["string_value"]
            try:
                values[each.name] = (int if each.type is int else float)(word)
            except ValueError as error:
                raise CompExportError(
                    f"parameter {each.name} {word!r} of config.pbtxt: give a number"
                ) from error
            if not 0 <= values[each.name] < 2**63:
                raise CompExportError(
                    f"parameter {each.name} {word} of config.pbtxt: give one that is not negative"
                )
        return cls(**values)  # type: ignore[arg-type]

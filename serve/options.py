"""What a request may ask of the engine, checked when it is made."""

from dataclasses import dataclass

from comp.errors import CompExportError


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate.

    Args:
        max_new_tokens: at most so many tokens are generated.
        temperature: 0 takes the likeliest token (greedy); above, tokens are drawn.
        top_p: draw from the smallest set of tokens whose probability reaches this.
        seed: of the draws; the same seed gives the same answer.
        stop: the answer ends before the first of these strings.
        keep_factor: multiplies the keep ratios of a compressed artifact (more than 1 keeps more
            tokens, less than 1 fewer); needs an artifact of the ``onnxruntime`` flavour.
        ignore_eos: go on after an end-of-sequence token (for measuring).

    Raises:
        CompExportError: for a value outside its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    keep_factor: float = 1.0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise CompExportError(f"max_new_tokens {self.max_new_tokens}: ask for 1 or more")
        if not 0 <= self.temperature <= 100:
            raise CompExportError(
                f"temperature {self.temperature}: choose one from 0 (greedy) to 100"
            )
        if not 0 < self.top_p <= 1:
            raise CompExportError(f"top_p {self.top_p}: choose one above 0 and at most 1")
        if self.seed < 0:
            raise CompExportError(f"seed {self.seed}: choose 0 or more")
        if not 0 < self.keep_factor <= 1000:
            raise CompExportError(
                f"keep_factor {self.keep_factor}: choose one above 0, at most 1000"
            )
        if isinstance(self.stop, str) or any(not word for word in self.stop):
            raise CompExportError("stop: give a sequence of strings, none of them empty")

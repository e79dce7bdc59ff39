"""Arguments of the model ``comp_export`` (``--model_args``), and what a task may ask of a generation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from comp.errors import CompExportError
from comp.utils.arguments import check_choices, check_counts, path_of
from comp.utils.device import Device
from comp.utils.similar import suggestion
from export.artifact.manifest import MANIFEST_NAME, Flavour, Precision
from serve.artifacts import BOTH, Which
from serve.backends.base import BackendName, ProviderChoice
from serve.generation.options import GenerationOptions

Images: TypeAlias = Literal["all", "middle"]
TEMPERATURE, SAMPLES, BEAMS, STOP = "temperature", "do_sample", "num_beams", "until"
LONGEST = "max_new_tokens"
# Settings without effect here: of sampling, where greedy answers take the likeliest token, and of cutting
# a picture, which the image processor of the checkpoint decides.
WITHOUT_EFFECT = ("top_p", "top_k", "seed", "image_aspect_ratio")
KNOWN = (LONGEST, STOP, TEMPERATURE, SAMPLES, BEAMS, *WITHOUT_EFFECT)


@dataclass(frozen=True)
class ModelSettings:
    """Arguments of the model; those of ``serve.load`` mean what they mean there.

    Attributes:
        run: an exported run, or the directory of one artifact.
        artifact: ``compressed`` (the default) or ``dense``; left out for the directory of one artifact.
        max_new_tokens: longest answer where the task names no length. The default is that of lmms-eval's
            own models of LLaVA.
        images: ``middle`` shows only the middle one of several images, as LLaVA's own evaluation does for
            the videos of SEED.
        batch_size: questions answered together; the answers do not depend on it.
    """

    run: str | Path = "runs/latest"
    artifact: Which | None = None
    backend: BackendName | None = None
    provider: ProviderChoice = "auto"
    precision: Precision | None = None
    flavour: Flavour | None = None
    device: Device = "auto"
    threads: int | None = None
    max_new_tokens: int = 1024
    images: Images = "all"
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.artifact is not None:
            check_choices(artifact=(self.artifact, BOTH))
        check_choices(images=(self.images, get_args(Images)))
        check_counts(max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
        if self.artifact is not None and (path_of("run", self.run) / MANIFEST_NAME).is_file():
            raise CompExportError(
                f"artifact={self.artifact}: {self.run} is the directory of one artifact; leave artifact "
                "out, or name the run"
            )

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "ModelSettings":
        """Take the arguments as lmms-eval parses them.

        Raises:
            CompExportError: a name is unknown, or a value is not among its choices.
        """
        names = [field.name for field in fields(cls)]
        for name in arguments:
            if name not in names:
                hint = suggestion(name, names)
                raise CompExportError(
                    f"model_args: {name!r} is unknown: {hint + ' ' if hint else ''}choose from "
                    f"{', '.join(names)}"
                )
        given = {name: value for name, value in arguments.items() if value is not None}
        size = given.get("batch_size")
        if isinstance(size, str) and size.isdecimal():  # of the command line
            given["batch_size"] = int(size)
        return cls(**given)

    @property
    def for_load(self) -> dict[str, Any]:
        """Arguments of ``serve.load``."""
        names = ("backend", "provider", "precision", "flavour", "device", "threads")
        return {"run": self.run, "dense": self.artifact == "dense"} | {
            name: getattr(self, name) for name in names
        }

    def generation(self, wanted: Mapping[str, Any], task: str) -> GenerationOptions:
        """Options of generation from a task's ``generation_kwargs``.

        Args:
            wanted: ``max_new_tokens``; ``until``, a string or several, before the first of which an answer
                ends; and what greedy answers can ignore.
            task: name of the task, for errors.

        Raises:
            CompExportError: the task wants to sample, beams, or an option that engines do not have.
        """
        _check_greedy(wanted, task)
        for name, value in wanted.items():
            if name not in KNOWN and value is not None:
                raise CompExportError(
                    f"{task} sets {name}={value!r}: the engine has no such option; it takes "
                    f"{', '.join(KNOWN)}"
                )
        until = wanted.get(STOP) or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        longest = wanted.get(LONGEST)
        return GenerationOptions(
            max_new_tokens=self.max_new_tokens if longest is None else longest, stop=stop
        )


def _check_greedy(wanted: Mapping[str, Any], task: str) -> None:
    """Refuse sampling, as ``do_sample`` or a temperature, and beams."""
    temperature, beams = wanted.get(TEMPERATURE), wanted.get(BEAMS)
    # As in lmms-eval's own models a temperature of 0 is greedy, whatever do_sample says.
    if temperature or (temperature is None and wanted.get(SAMPLES)):
        name = TEMPERATURE if temperature else SAMPLES
        raise CompExportError(
            f"{task} samples ({name}={wanted[name]}), and comp_export answers greedily: "
            "--gen_kwargs temperature=0,do_sample=False"
        )
    if beams not in (None, 1):
        raise CompExportError(
            f"{task} sets {BEAMS}={beams}, and comp_export has no beam search: --gen_kwargs {BEAMS}=1"
        )

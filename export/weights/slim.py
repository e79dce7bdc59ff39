"""Physical pruning: a checkpoint's tensors without the heads and channels that a plan removes.

``SlimWeights`` cuts a tensor when it is read; ``write_slim_checkpoint`` streams the cut tensors
into a checkpoint that the slim class of the family loads. Only one tensor is held at a time.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from comp.checkpoints.chat_template import FOLDER as TEMPLATES
from comp.checkpoints.generation_settings import check_greedy
from comp.checkpoints.llava_shape import ModelShape
from comp.checkpoints.llava_tensors import check_llava
from comp.checkpoints.locate import SINGLE, read_config
from comp.checkpoints.slices import Cut, cut_of
from comp.checkpoints.stops import stop_tokens
from comp.checkpoints.tensor_names import name_in_torch
from comp.checkpoints.tying import EMBEDDING, LM_HEAD, untied
from comp.errors import CompExportError
from comp.plan import PruningPlan
from comp.registry.families import family_of
from comp.utils.files import writing_directory
from export.configs.llava import llava_of, slim_config
from export.configs.processor import image_processing_for, name_classes
from export.weights.checkpoint import DTYPES, CheckpointWeights, WeightSource

BUFFERS = ("rotary_emb.inv_freq",)  # saved by old releases, never read
COMPANIONS = (  # what an image processor, a template and generate() need beside the weights
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.*",
    f"{TEMPLATES}/*.jinja",
    "generation_config.json",
)
CHUNK = 1 << 24  # elements written at a time


class SlimWeights:
    """The tensors of ``source``, cut by ``cut`` (Eq. 2 with binary masks, made physical)."""

    def __init__(self, source: WeightSource, cut: Callable[[str], Cut | None]) -> None:
        self._source = source
        self._cut = cut

    def names(self) -> tuple[str, ...]:
        return self._source.names()

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._source.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._source.shape(name)
        cut = self._cut(name)
        if cut is None:
            return shape
        return (*shape[: cut.axis], len(cut.keep), *shape[cut.axis + 1 :])

    def read(self, name: str) -> np.ndarray:
        values = self._source.read(name)
        cut = self._cut(name)
        return values if cut is None else np.take(values, np.asarray(cut.keep), axis=cut.axis)


def slim_weights(
    directory: Path, plan: PruningPlan, source: WeightSource | None = None
) -> SlimWeights:
    """The cut tensors of a dense checkpoint (or of ``source``, weights of the same shape).

    Raises:
        CompExportError: the plan is of another model, or the checkpoint is incomplete.
    """
    config = read_config(directory)
    shape = llava_of(config, str(directory))
    shape.pruned(plan)  # refuses a plan of another model
    if source is None:
        check_llava(directory, config)
    sizes = shape.sizes
    head_dim = {"language": sizes.text.head_dim, "vision": sizes.vision.head_dim}
    return SlimWeights(
        source or CheckpointWeights(directory), lambda name: cut_of(name, plan, head_dim)
    )


def write_slim_checkpoint(
    dense: Path,
    plan: PruningPlan,
    out: Path,
    at: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the slim checkpoint: cut weights, configuration, tokenizer and processor.

    Args:
        dense: directory of the dense checkpoint: configuration, tokenizer and weights.
        plan: the plan to apply.
        out: directory to write; replaced whole.
        at: called with the number of tensors written and the number of all.

    Returns:
        ``out``.

    Raises:
        CompExportError: the checkpoint is of another family, its answers depend on settings that engines
            lack (``comp.checkpoints.stops``), the plan is of another model, or a disk error.
    """
    from comp.families.tokenizing import load_tokenizer, save_tokenizer

    config = read_config(dense)
    shape = llava_of(config, str(dense)).pruned(plan)
    image_processing_for(dense, shape.sizes.vision.image_size)  # refuses an unknown processor
    tokenizer = load_tokenizer(dense)
    stop_tokens(dense, config)
    check_greedy(dense)
    weights = slim_weights(dense, plan)
    with writing_directory(out) as directory:
        family = family_of(config["model_type"])
        assert family is not None  # llava_of has read it
        assert family.processor is not None
        write_safetensors(weights, directory / SINGLE, at, lambda name: name_in_torch(name, family))
        new_config = slim_config(config, shape.sizes)
        if LM_HEAD in weights.names() and EMBEDDING in weights.names():
            new_config = untied(new_config)
        (directory / "config.json").write_text(
            json.dumps(new_config, indent=2) + "\n", encoding="utf-8"
        )
        copy_companions(dense, directory)
        save_tokenizer(tokenizer, directory)
        name_classes(directory, dense, family.processor)
        _narrow_images(directory, shape.sizes)
    return out


def copy_companions(source: Path, target: Path) -> None:
    """Copy the processor, template and generation files of a checkpoint."""
    for pattern in COMPANIONS:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                (target / path.relative_to(source)).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target / path.relative_to(source))


def _narrow_images(directory: Path, sizes: ModelShape) -> None:
    """Make the processor of transformers write as many image tokens as an image has after selection.

    It writes one for each patch plus a number of additional ones, which may be negative.
    """
    path = directory / "processor_config.json"
    if sizes.image_selection is None or not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8-sig"))
    more = settings.get("num_additional_image_tokens", 0)
    settings["num_additional_image_tokens"] = more + sizes.image_tokens - sizes.tower_tokens
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_safetensors(
    weights: WeightSource,
    path: Path,
    at: Callable[[int, int], None] = lambda done, total: None,
    naming: Callable[[str], str] = str,
) -> None:
    """Stream tensors into one safetensors file; ``naming`` returns their names there.

    Raises:
        CompExportError: a tensor's type cannot be stored.
    """
    names = [name for name in weights.names() if not name.endswith(BUFFERS)]
    codes = {stored: code for code, stored in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        stored = weights.dtype(name)
        if stored not in codes:
            raise CompExportError(
                f"{name} is {stored}: convert the model to float32, float16 or bfloat16"
            )
        shape = weights.shape(name)
        size = int(np.prod(shape, dtype=np.int64)) * stored.itemsize
        header[naming(name)] = {
            "dtype": codes[stored],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, name in enumerate(names, start=1):
            for chunk in _chunks(weights.read(name)):
                file.write(chunk.tobytes())
            at(number, len(names))


def _chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    flat = np.ascontiguousarray(values).reshape(-1)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK]

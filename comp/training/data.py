"""Prepare the data of a pruning run, from the embedded dataset or a user's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from comp.adapter import FamilyAdapter
from comp.data.embedded import embedded_examples
from comp.data.example import AnyExample
from comp.data.split import Parts, Subset
from comp.errors import CompExportError
from comp.utils.compute import Compute

TRAIN_SIZE = 120_000


@dataclass(frozen=True)
class PruningData:
    """Training examples, and collated batches for calibration and validation.

    Attributes:
        cost: batches for the cost of a stage (Eq. 8); ``None``: the whole validation set.
    """

    train: Sequence[AnyExample]
    calibration: Sequence[Any]
    validation: Sequence[Any]
    cost: Sequence[Any] | None = None


@dataclass(frozen=True)
class DataSizes:
    """Numbers of examples for calibration and validation, and the batch size.

    Attributes:
        cost: number of validation examples, the first ones, that measure the cost of a stage.

    Raises:
        CompExportError: ``cost`` is larger than ``validation``.
    """

    calibration: int = 64
    validation: int = 256
    batch_size: int = 32
    cost: int | None = None
    calibrate_at_once: bool = False  # all in one batch: a layer is read once for all

    def __post_init__(self) -> None:
        if self.cost is not None and self.cost > self.validation:
            raise CompExportError(
                f"{self.cost} examples for the cost are more than the {self.validation} that validate: "
                "give fewer --cost-examples or more --validation"
            )


def embedded_data(adapter: FamilyAdapter, compute: Compute, sizes: DataSizes) -> PruningData:
    """Data of EmojiScenes: calibration and training from ``train``, the metric from ``validation``."""
    train = embedded_examples(adapter.task, "train", TRAIN_SIZE)
    validation = embedded_examples(adapter.task, "validation", sizes.validation)
    return split_data(adapter, compute, sizes, train, validation)


def own_data(
    adapter: FamilyAdapter,
    compute: Compute,
    sizes: DataSizes,
    examples: Sequence[AnyExample],
    parts: Parts,
) -> PruningData:
    """Data of a user's own examples, by the parts of their split; those of the test are left alone."""
    train, validation = Subset(examples, parts.train), Subset(examples, parts.validation)
    return split_data(adapter, compute, sizes, train, validation)


def split_data(
    adapter: FamilyAdapter,
    compute: Compute,
    sizes: DataSizes,
    train: Sequence[AnyExample],
    validation: Sequence[AnyExample],
) -> PruningData:
    """Data of given splits."""
    for option, number in (
        ("batch-size", sizes.batch_size),
        ("calibration", min(sizes.calibration, len(train))),
        ("validation", min(sizes.validation, len(validation))),
        ("cost-examples", compute.processes if sizes.cost is None else sizes.cost),
    ):
        if compute.processes > 1 and number < compute.processes:
            raise CompExportError(
                f"{number} examples of --{option} for {compute.processes} processes: each needs one; give "
                "more, or start fewer processes"
            )
    # Training reads its data in permuted order; calibration takes the last examples.
    count = len(train)
    calibration = [train[count - 1 - i] for i in range(min(sizes.calibration, count))]
    measured = [validation[i] for i in range(min(sizes.validation, len(validation)))]
    at_a_time = len(calibration) if sizes.calibrate_at_once else sizes.batch_size
    return PruningData(
        train,
        _batches(adapter, compute, calibration, at_a_time),
        _batches(adapter, compute, measured, sizes.batch_size),
        None
        if sizes.cost is None
        else _batches(adapter, compute, measured[: sizes.cost], sizes.batch_size),
    )


def _batches(
    adapter: FamilyAdapter, compute: Compute, examples: list[AnyExample], size: int
) -> list[Any]:
    return [
        adapter.collate(compute.shard(examples[start : start + size]))
        for start in range(0, len(examples), size)
        if compute.shard_size(
            len(examples[start : start + size])
        )  # of the last one it may have none
    ]

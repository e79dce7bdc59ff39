"""Measure and draw the figures of ``inspect --figures``, and write their folder atomically."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from comp.adapter import FamilyAdapter
from comp.checkpoints.dense_model import dense_model_of
from comp.data.embedded import embedded_examples
from comp.data.formats.karpathy import KarpathySplit
from comp.data.loading import has_splits, load_task_data
from comp.errors import CompExportError
from comp.families.loading import load_adapter
from comp.figures.drawing import overlap_figure, shares_figure, stability_figure
from comp.figures.mode_shares import mode_shares
from comp.figures.rank_stability import DRAWS, Stability, measure_stability
from comp.figures.run_figures import read_stages, save_figure, structure_figure, trajectory_figure
from comp.figures.token_overlap import TOP, Overlap, measure_overlaps
from comp.masks import check_plan_is_of, name_of
from comp.plan import PruningPlan
from comp.runs import RunDirectory
from comp.utils.files import write_text, writing_directory
from comp.utils.progress import Progress, Task

NUMBERS = "figures.json"  # the numbers in the figures; also marks a folder that may be replaced


@dataclass(frozen=True)
class InsightOptions:
    """Options of ``inspect --figures``.

    Attributes:
        samples: number of examples.
        model: the dense model; ``None``: as recorded in the run.
        data: a data file; ``None``: the validation split of EmojiScenes.
        seed: seed of the heads drawn at random.
    """

    samples: int
    model: str | None = None
    data: Path | None = None
    images: Path | None = None
    follow_links: bool = False
    device: str = "cpu"
    seed: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Insight:
    """The figures as PNGs, their numbers, and the reasons for missing figures."""

    paths: tuple[Path, ...]
    record: Path  # the numbers as JSON
    numbers: dict[str, Any]
    missing: dict[str, str]


@dataclass
class _Gathered:
    figures: dict[str, Figure] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def measured(self, name: str, measure: Callable[[], tuple[Figure, Any]]) -> None:
        """Add a figure and its numbers, or the reason why it is missing."""
        try:
            self.figures[name], self.numbers[name] = measure()
        except CompExportError as error:
            self.missing[name] = str(error)


def write_insight(run: RunDirectory, folder: Path, options: InsightOptions) -> Insight:
    """Replace ``folder`` by PNGs and their numbers in ``figures.json``.

    ``trajectory``, ``shares`` and ``structure`` need only the run's files. ``overlap`` and
    ``rank-stability`` need the dense model; if they fail, the other figures are still written.

    Raises:
        CompExportError: the run's files are damaged or of different runs, or ``folder`` holds other files.
    """
    check_replaceable(folder)
    plan, stages = run.load_plan(), read_stages(run.stages)
    shares = mode_shares(stages, plan)
    gathered = _Gathered()
    gathered.figures["trajectory"] = trajectory_figure(stages, plan)
    gathered.figures["shares"] = shares_figure(shares, plan)
    gathered.figures["structure"] = structure_figure(plan)
    gathered.numbers["trajectory"] = stages
    gathered.numbers["shares"] = [asdict(share) for share in shares]
    try:
        adapter = dense_model(run, plan, options)
        batches = _batches(adapter, options)
    except CompExportError as error:
        gathered.missing = {"overlap": str(error), "rank-stability": str(error)}
    else:
        _of_tokens(adapter, plan, batches, options, gathered)
    with writing_directory(folder) as temporary:
        for name, figure in gathered.figures.items():
            save_figure(figure, temporary / f"{name}.png")
        record = {"plan": _headline(plan), **gathered.numbers, "missing": gathered.missing}
        write_text(temporary / NUMBERS, json.dumps(record, indent=1) + "\n")
    paths = tuple(folder / f"{name}.png" for name in gathered.figures)
    return Insight(paths, folder / NUMBERS, gathered.numbers, gathered.missing)


def check_replaceable(folder: Path) -> None:
    """Refuse a folder that ``inspect --figures`` did not write.

    Raises:
        CompExportError: it is a file, or holds files but no ``figures.json``.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / NUMBERS).is_file()):
        raise CompExportError(
            f"{folder} exists and was not written by inspect --figures: move it away, or choose another "
            "place with --out"
        )


def dense_model(run: RunDirectory, plan: PruningPlan, options: InsightOptions) -> FamilyAdapter:
    """Load the dense model of a run.

    Raises:
        CompExportError: it is missing, or it is another model.
    """
    directory = dense_model_of(run, options.model)
    adapter = load_adapter(directory, options.device)
    check_plan_is_of(plan, adapter.blocks, str(directory))
    return adapter


def _batches(adapter: FamilyAdapter, options: InsightOptions) -> list[Any]:
    """Return batches of one example, so that results do not depend on padding or other examples."""
    examples: Sequence[Any]
    if options.data is None:
        examples = embedded_examples(adapter.task, "validation", options.samples)
    else:
        split: KarpathySplit | None = "validation" if has_splits(options.data) else None
        links = options.follow_links
        examples = load_task_data(adapter.task, options.data, options.images, split, links)
        if len(examples) < options.samples:
            raise CompExportError(
                f"{options.data} holds {len(examples)} examples, and {options.samples} are requested: "
                f"pass --samples {len(examples)}, or more data"
            )
    return [adapter.collate([examples[index]]) for index in range(options.samples)]


def _of_tokens(
    adapter: FamilyAdapter,
    plan: PruningPlan,
    batches: Sequence[Any],
    options: InsightOptions,
    gathered: _Gathered,
) -> None:
    """Add the two figures that need the dense model."""
    count = len(batches)

    def overlap(task: Task) -> tuple[Figure, Any]:
        overlaps = measure_overlaps(adapter, batches, _counted(task))
        numbers = {"samples": count, "top": TOP, "layers": [_of_overlap(each) for each in overlaps]}
        return overlap_figure(overlaps, count, plan), numbers

    def stability(task: Task) -> tuple[Figure, Any]:
        stabilities = measure_stability(adapter, plan, batches, options.seed, _counted(task))
        numbers: dict[str, Any] = {"samples": count, "seed": options.seed, "draws": DRAWS}
        numbers["layers"] = [_of_stability(each) for each in stabilities]
        return stability_figure(stabilities, count, plan), numbers

    progress = Progress(options.quiet)
    source = "the validation split of EmojiScenes" if options.data is None else options.data
    progress.say(
        f"inspect --figures: the dense model ranks the tokens of the first {count} examples of {source}, "
        "under masks too; --samples takes more or fewer"
    )
    for name, words, measure in (
        ("overlap", "deciding tokens", overlap),
        ("rank-stability", "ranks under masks", stability),
    ):
        with progress.task(words, count) as task:
            gathered.measured(name, partial(measure, task))


def _counted(task: Task) -> Callable[[], None]:
    done = 0

    def passed() -> None:
        nonlocal done
        done += 1
        task.at(done)

    return passed


def _headline(plan: PruningPlan) -> dict[str, Any]:
    named = {"model": plan.model, "method": plan.method, "rate": plan.rate}
    return named | {"macs_dense": plan.macs_dense, "macs": plan.macs}


def _of_overlap(overlap: Overlap) -> dict[str, Any]:
    return {
        "block": name_of(overlap.key),
        "sublayer": overlap.sublayer,
        "without_cip": asdict(overlap.without_cip),
        "with_cip": asdict(overlap.with_cip),
        "chance": overlap.chance,
    }


def _of_stability(stability: Stability) -> dict[str, Any]:
    case = {"heads": stability.case.chosen, "masked": stability.case.progress}
    case |= {"cit": stability.case.calibrated, "alone": stability.case.alone}
    return {"block": name_of(stability.key)} | case | asdict(stability.correlation)

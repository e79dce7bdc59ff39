"""Choose the examples of an evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp.errors import CompExportError

if TYPE_CHECKING:
    from comp.plan import Task

DEFAULT_LIMIT = 2000


def examples_of(
    task: "Task",
    data: Path | None,
    images: Path | None,
    split: str | None,
    limit: int | None,
    follow_links: bool = False,
) -> "tuple[Sequence[Any], dict[str, Any]]":
    """Return the examples of a split, and a record of their origin.

    Args:
        task: task of the model.
        data: own data; by default EmojiScenes.
        images: the folder of ``data``'s images.
        split: ``test`` by default, if there are splits.
        follow_links: also read images through links that leave the folder.
        limit: number of examples; by default 2000 of EmojiScenes, all of ``data``.

    Raises:
        CompExportError: images without data, a split of data without splits, or unreadable data.
    """
    if data is None:
        if images is not None:
            raise CompExportError(
                f"--images {images} without --data: name the file with the questions"
            )
        from comp.data.embedded import embedded_examples

        where = split or "test"
        chosen = embedded_examples(task, where, limit or DEFAULT_LIMIT)
        return chosen, {"name": f"EmojiScenes {where}", "n": len(chosen)}
    from comp.data.loading import has_splits, load_task_data

    if split is not None:
        check_has_splits(data, split)
    of: Any = (split or "test") if has_splits(data) else None
    loaded = load_task_data(task, data, images, of, follow_links)
    if limit is not None:
        loaded = loaded[:limit]
    return loaded, {"name": data.name, "n": len(loaded)}


def check_has_splits(data: Path, split: str) -> None:
    """Refuse a split of a file without splits.

    Raises:
        CompExportError: the file has none.
    """
    from comp.data.loading import has_splits

    if not has_splits(data):
        raise CompExportError(f"--split {split}: {data} has no splits: leave it out")

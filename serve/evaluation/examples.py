"""The examples that a measurement asks, and where they come from."""

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
    """The examples of a split, and a record of where they come from.

    Args:
        task: what the model does.
        data: own data; by default EmojiScenes.
        images: the folder of ``data``'s images.
        split: ``test`` where there are splits and none is named.
        follow_links: also take images that links in it lead to, wherever they lie.
        limit: so many at most; by default 2000 of EmojiScenes, all of ``data``.

    Raises:
        CompExportError: images without data, a split of data that have none, or unreadable data.
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

    if split is not None and not has_splits(data):
        raise CompExportError(f"--split {split}: {data} has no splits: leave it out")
    of: Any = (split or "test") if has_splits(data) else None
    loaded = load_task_data(task, data, images, of, follow_links)
    if limit is not None:
        loaded = loaded[:limit]
    return loaded, {"name": data.name, "n": len(loaded)}

"""Read captions of Flickr30K and COCO in Karpathy's JSON: one file with all splits.

``{"images": [{"filename": ..., "filepath": ..., "split": ..., "sentences": [{"raw": ...}, ...]}, ...]}``.
Images are below one folder, in ``filepath`` (COCO: ``val2014``) or directly in it (Flickr30K).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from comp.data.example import Example
from comp.data.formats.records import (
    ImageFolder,
    ImageRecord,
    Records,
    image_file,
    image_folder,
    read_list,
)
from comp.errors import CompExportError

KarpathySplit = Literal["train", "validation", "test"]
SPLITS: dict[str, KarpathySplit] = {
    "train": "train",
    "restval": "train",  # COCO: images of its validation set that Karpathy trains on
    "val": "validation",
    "test": "test",
}


def load_karpathy(
    path: Path, images: Path | ImageFolder | None, split: KarpathySplit
) -> Records[Example]:
    """Load the images of a split with captions as answers.

    Training has an example for every caption; the other splits have one for every image, with its first
    caption, so that the candidates of a batch are from different images. ``answers`` are all captions.

    Raises:
        CompExportError: the file is not such JSON, a record is incomplete, or the split is empty.
    """
    records = list(_records(path, image_folder(path, images), split))
    if not records:
        raise CompExportError(
            f"{path} holds no image of the {split} split: its records say split {', '.join(SPLITS)}"
        )
    return Records(records)


def images_in(path: Path, split: KarpathySplit) -> int:
    """Return the number of images of a split, without looking for their files."""
    images, _ = read_list(path, "images", "Karpathy's JSON")
    named = [image.get("split") for image in images if isinstance(image, dict)]
    return sum(SPLITS.get(name) == split for name in named if isinstance(name, str))


def _records(path: Path, folder: ImageFolder, split: KarpathySplit) -> Iterator[ImageRecord]:
    images, _ = read_list(path, "images", "Karpathy's JSON")
    for number, image in enumerate(images, start=1):
        where = f"{path}, image {number}"
        if not isinstance(image, dict) or image.get("split") not in SPLITS:
            named_split = image.get("split") if isinstance(image, dict) else image
            raise CompExportError(
                f"{where}: split is {named_split!r}, not one of {', '.join(SPLITS)}"
            )
        if SPLITS[image["split"]] != split:
            continue
        captions = _captions(image.get("sentences"), where)
        name = "/".join(str(image[key]) for key in ("filepath", "filename") if image.get(key))
        shown = image_file(name, folder, where)
        for caption in captions if split == "train" else captions[:1]:
            yield ImageRecord(shown, "", caption, "caption", where, tuple(captions))


def _captions(sentences: object, where: str) -> list[str]:
    """Return the raw captions of an image."""
    if not isinstance(sentences, list) or not sentences:
        raise CompExportError(f"{where} has no sentences: captions are [{{'raw': text}}, ...]")
    captions = []
    for sentence in sentences:
        raw = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(raw, str) or not raw.strip():
            raise CompExportError(f"{where}: a sentence's 'raw' is {raw!r}: give it as text")
        captions.append(raw.strip())
    return captions

"""Copy a LLaVA checkpoint, with the names of its vision tower's tensors as they are on the hub.

    python benchmarks/rivals/hub_names.py comp/models/tiny-llava OUT

transformers 5.23 writes ``vision_tower.encoder…``; checkpoints on the hub have
``vision_tower.vision_model.encoder…``. Newer versions read both. The version that optimum-intel requires
reads only the second: given the first, it draws the tower's weights at random, with a warning.
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

WEIGHTS = "model.safetensors"
TOWER, INNER = "vision_tower.", "vision_tower.vision_model."


def hub_names(names: Iterable[str]) -> dict[str, str]:
    """Return each name with its name on the hub."""
    return {
        name: name
        if name.startswith(INNER)
        else name.replace(TOWER, INNER, 1)
        if name.startswith(TOWER)
        else name
        for name in names
    }


def copy_with_hub_names(checkpoint: Path, out: Path) -> None:
    """Copy all files of a checkpoint with one weights file."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, out)
    tensors = load_file(checkpoint / WEIGHTS)
    renamed = hub_names(tensors)
    save_file(
        {renamed[name]: value for name, value in tensors.items()},
        out / WEIGHTS,
        metadata={"format": "pt"},
    )


def main() -> None:
    """Copy the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    copy_with_hub_names(args.checkpoint, args.out)


if __name__ == "__main__":
    main()

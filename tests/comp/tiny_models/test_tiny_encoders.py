"""The embedded CLIP, and what all embedded models have in common."""

import pytest
import torch
from transformers import AutoModel, AutoProcessor, CLIPModel

from comp.adapter import Forwarding
from comp.checkpoints.locate import EMBEDDED, resolve_model
from comp.data.embedded import embedded_examples
from comp.data.emoji_scenes.captions import CaptionExamples
from comp.families.loading import load_adapter

MIB = 2**20
MOST = 64 * MIB  # of all embedded weights together
PAIRS = 100


def test_embedded_weights_fit_in_the_package():
    files = [path for name in EMBEDDED for path in resolve_model(name).glob("*.safetensors")]
    assert len(files) == len(EMBEDDED)
    assert sum(path.stat().st_size for path in files) <= MOST


@pytest.mark.parametrize("name", EMBEDDED)
def test_each_is_safetensors_and_has_a_card(name):
    directory = resolve_model(name)
    assert not [path for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".py")]
    card = (directory / "README.md").read_text(encoding="utf-8")
    for heading in ("## Data", "## Accuracy", "## Recipe", "## Limits"):
        assert heading in card


@pytest.mark.slow
def test_tiny_clip_retrieves_captions_in_plain_transformers():
    directory = resolve_model("tiny-clip")
    model = AutoModel.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(directory, local_files_only=True)
    assert type(model) is CLIPModel
    pairs = [CaptionExamples("test", PAIRS)[index] for index in range(PAIRS)]
    inputs = processor(
        text=[pair.answer for pair in pairs],
        images=[pair.image for pair in pairs],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        scores = model(**inputs).logits_per_image
    own = torch.arange(PAIRS)
    # Far above the figure for many more candidates would be luck; far below, a damaged model.
    assert int((scores.argmax(1) == own).sum()) >= 85
    assert int((scores.argmax(0) == own).sum()) >= 85


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    # Below the cards' figures by the chance variation of few examples; captions word by word.
    [("vqa", 0.75), ("caption", 0.8), ("retrieval", 0.95), ("nlvr", 0.82)],
)
def test_tiny_blips_reach_the_figures_of_their_cards(name, least):
    adapter = load_adapter(resolve_model(f"tiny-blip-{name}"))
    examples = embedded_examples(adapter.task, "test", 96)
    right = []
    for start in range(0, 96, 32):
        batch = adapter.collate([examples[index] for index in range(start, start + 32)])
        with torch.no_grad():
            right += adapter.score(batch, Forwarding()).correct.tolist()
    assert sum(right) / len(right) >= least

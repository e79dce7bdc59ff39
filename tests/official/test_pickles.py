"""Some official repositories have only pickled weights: the error says how to convert them."""

import re

import pytest
import torch
from safetensors.torch import load_file

from comp.errors import CompExportError
from comp.families.loading import load_adapter
from tests.official.build import build
from tests.official.catalogue import CHECKPOINTS


@pytest.fixture
def pickled(tmp_path):
    """A captioning BLIP as the hub has it."""
    (official,) = (each for each in CHECKPOINTS if each.hub_id.endswith("captioning-base"))
    directory = tmp_path / "models--Salesforce--blip-image-captioning-base" / "snapshots" / "abc"
    build(official, official.spellings[0], directory)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


def program_of(refused) -> str:
    (program,) = re.findall('python -c "(.*)"', str(refused.value))
    return program


def test_the_suggested_program_converts_them(pickled, tmp_path):
    with pytest.raises(CompExportError, match="a pickle, which is never loaded") as refused:
        load_adapter(pickled)
    exec(program_of(refused).replace("'NEW'", repr(str(tmp_path / "new"))))
    adapter = load_adapter(tmp_path / "new")
    stored = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    for name, tensor in adapter.model.state_dict().items():
        assert torch.equal(tensor, stored[name]), name


def test_the_repository_on_the_hub_is_named(pickled):
    """Pickles are not fetched from there."""
    (pickled / "pytorch_model.bin").unlink()
    name = "Salesforce/blip-image-captioning-base"
    with pytest.raises(CompExportError, match=f"{name} has no .* on the hub") as refused:
        load_adapter(pickled)
    assert f"BlipForConditionalGeneration.from_pretrained('{name}')" in program_of(refused)

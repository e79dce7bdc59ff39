"""Tokens and multiply-accumulates at a keep factor are those of the engine and of the plan."""

import pytest

from comp.plan import Workload
from demo.keeping import _language, keeping
from export.artifact.manifest import Macs
from serve.generation.options import GenerationOptions


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.85, 1.0, 1.4, 2.0])
def test_tokens_are_those_that_the_engine_keeps(pair, picture, factor):
    options = GenerationOptions(max_new_tokens=1, keep_factor=factor)
    kept = pair.compressed.generate([picture], "where?", options).kept
    left = keeping(pair.compressed.manifest, factor)
    assert left.tokens == tuple(kept.image_tokens(place).size for place in left.places)
    assert left.of == 16


def test_costs_grow_with_the_factor_from_those_of_the_manifest(pair):
    manifest = pair.compressed.manifest
    costs = [keeping(manifest, factor).macs for factor in (0.25, 0.5, 1.0, 1.5)]
    assert costs == sorted(set(costs))
    assert keeping(manifest, 1.0).macs == manifest.macs.artifact


def test_the_decoder_costs_what_the_manifest_says(pair):
    for manifest in pair.manifests.values():
        own = {drop.after_layer: drop.shares for drop in manifest.decoder.drops}
        assert _language(manifest, own) == manifest.macs.parts["language"]


def test_a_manifest_without_costs_has_none(pair):
    none = pair.compressed.manifest.model_copy(update={"macs": None})
    assert keeping(none, 0.5).macs is None
    bare = Macs(dense=10, artifact=5, workload=Workload(image_tokens=16, text_tokens=4))
    unknown = pair.compressed.manifest.model_copy(update={"macs": bare})
    assert keeping(unknown, 0.5).macs is None

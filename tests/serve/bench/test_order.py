"""The order of measurement: on a busy machine the first of a round is slow more often."""

from export.artifact.load import read_manifest
from serve.artifacts import DEFAULT_VARIANT
from serve.bench import compare as bench_module
from serve.bench.compare import BenchOptions, Contestant, bench
from serve.bench.request import work_of
from serve.evaluation.by_task import task_of


def test_each_variant_is_first_and_last_equally_often(
    dense_artifact, compressed_artifact, monkeypatch
):
    order, perform = [], bench_module.perform

    def recorded(engine, work):
        order.append(engine.manifest.size_bytes)
        return perform(engine, work)

    monkeypatch.setattr(bench_module, "perform", recorded)
    work = work_of(task_of(dense_artifact), (), (), 2, 0)
    options = BenchOptions(work=work, warmup=1, repeats=3, cold_starts=1, device="cpu", threads=1)
    both = {"dense": dense_artifact, "compressed": compressed_artifact}
    report = bench([Contestant(DEFAULT_VARIANT, both)], options)
    dense, compressed = (read_manifest(path).size_bytes for path in both.values())
    assert order == 2 * [dense, compressed, compressed, dense]
    assert report["dense"]["size_mb"] > report["compressed"]["size_mb"]

"""Stands in for the processes of a study: each step writes its files at once."""

import json
from itertools import pairwise
from pathlib import Path

from comp.plan import PruningPlan, Workload
from serve.study.processes import StepError

DENSE_MACS = 1_000_000
DENSE_LATENCY = 20.0


class Steps:
    """Used in place of ``run_process``.

    Attributes:
        accuracy: accuracy of a cell, by its name; 0.5 by default.
        off: error of a cell's FLOPs, as a share of the target.
        broken: exceptions by (cell, step), raised once each.
        taken: (cell, step) in order.
        threads: number of threads, by (cell, step).
    """

    def __init__(self, accuracy=None, off=None):
        self.accuracy, self.off = accuracy or {}, off or {}
        self.broken, self.taken, self.words, self.threads = {}, [], [], {}

    def __call__(self, words, log, lock, threads=None):
        assert not lock < 0
        cell = log.stem
        step, rest = (words[3], words[4:]) if words[2] == "comp.cli" else ("measure", words[3:])
        request = json.loads(rest[0]) if step == "measure" else None
        if request and request["run"]:
            step = "dense"
        self.taken.append((cell, step))
        self.threads[cell, step] = threads
        self.words.append(words)
        wrong = self.broken.pop((cell, step), None)
        if step == "prune":
            return self.prune(cell, rest, wrong)
        if wrong is not None:
            raise wrong
        return self.onnx(rest) if step == "onnx" else self.measure(cell, request)

    def prune(self, cell, rest, wrong):
        options = dict(pairwise(rest))
        run, rate = Path(options["--out"]), float(options["--rate"])
        state = run / ".state"
        assert ("--resume" in rest) == state.exists(), "prune refuses either"
        state.mkdir(parents=True, exist_ok=True)
        (state / "request.json").write_text("{}")
        if wrong is not None:
            raise wrong
        left = (1 - rate) * (1 + self.off.get(cell, 0))
        macs, times = round(left * DENSE_MACS), {}
        if options.get("--cost") == "latency":  # the time is the target's, the FLOPs are others
            macs = round((1 - rate / 2) * DENSE_MACS)
            times = {"rate_of": "latency", "milliseconds_dense": 8.0, "milliseconds": 8.0 * left}
        PruningPlan(
            family="llava",
            model="tiny-llava",
            method=options["--method"],
            rate=1 - left if times else 1 - macs / DENSE_MACS,
            workload=Workload(image_tokens=64, text_tokens=12),
            macs_dense=DENSE_MACS,
            macs=macs,
            blocks=(),
            **times,
        ).save(run / "plan.json")
        record = {
            "version": 1,
            "model": "tiny-llava",
            "metric": {"name": "m", "dense": 0.9, "before_recovery": 0.3, "compressed": 0.6},
            "steps": {"search": 90, "recovery": 306},
            "versions": {"torch": "2"},
            "resumed": options["--seed"] == "1",
            "times_fine_tuning": {"search": 2.0, "whole": 1.5 + int(options["--seed"])},
        }
        (run / "run.json").write_text(json.dumps(record))
        (run / "checkpoint").mkdir()
        (run / "checkpoint" / "model.safetensors").write_text("large")
        (state / "request.json").unlink()
        state.rmdir()
        return ""

    def onnx(self, rest):
        (Path(rest[0]) / "onnx").mkdir()
        (Path(rest[0]) / "onnx" / "manifest.json").write_text("{}")
        return ""

    def measure(self, cell, request):
        artifact = Path(request["artifact"])
        if request["run"]:
            assert (Path(request["run"]) / "plan.json").is_file()
            artifact.mkdir(parents=True)
            (artifact / "manifest.json").write_text("{}")
        assert (artifact / "manifest.json").is_file()
        value = 0.9 if request["run"] else self.accuracy.get(cell, 0.5)
        result = {
            "accuracy": {"value": value, "interval": [0.4, 0.6], "n": 100, "share": True},
            "metric": "exact match",
            "test": "EmojiScenes test",
            "params": 8_000_000,
        }
        if request["dense"]:
            assert (Path(request["dense"]) / "manifest.json").is_file()
            result["latency"] = {
                "ttft_ms": 5.0,
                "dense_ttft_ms": DENSE_LATENCY,
                "tpot_ms": 1.0,
                "dense_tpot_ms": 2.0,
            }
        return json.dumps(result)


FAILED = StepError("rate 0.8 is out of reach: at most 0.71")

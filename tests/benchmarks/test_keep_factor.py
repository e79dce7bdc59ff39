"""Factors on keep ratios: accuracy over all rounds with its interval, beside times."""

import argparse

import pytest
from asking import Measured
from keep_factor import factors, report_of, rows_of
from questions import Asked

from comp.metrics.exact_match import wilson_interval


def measured(text, first, whole, factor, kept):
    extension = {
        "keep_factor": factor,
        "image_tokens_kept": [{"place": "layer 1", "kept": 99}, {"place": "layer 4", "kept": kept}],
    }
    return Measured(first, whole, 2, text=text, extension=extension)


def test_report_of_two_rounds_by_hand():
    questions = [Asked([], "fox"), Asked([], "owl")]
    rounds = [
        (questions, ([measured("Fox", 1, 2, 1.5, 20), measured("cat", 3, 4, 0.5, 10)], 8.0)),
        (questions, ([measured("fox", 5, 6, 1.0, 15), measured("owl ", 7, 8, 1.0, 15)], 4.0)),
    ]
    report = report_of(rounds)
    assert (report["right"], report["requests"], report["accuracy"]) == (3, 4, 0.75)
    assert report["ci95"] == [round(bound, 4) for bound in wilson_interval(3, 4)]
    assert report["accuracy_by_round"] == [0.5, 1.0]
    assert report["requests_per_second_by_round"] == [0.25, 0.5]
    assert report["ttft_ms"]["p50"] == 4000
    assert report["whole_ms_p50_by_round"] == [3000, 7000]
    assert report["factor"] == {"mean": 1.0, "least": 0.5, "most": 1.5}
    assert report["image_tokens_kept_at_the_end"] == 15
    (row,) = rows_of({"loads": {"0.3": {"factors": {"auto": report}}}})
    assert row[:3] == ["0.3", "auto", "75.0 %"]


def test_factors_need_the_one_that_loads_belong_to():
    assert factors("0.5, 1,auto") == ["0.5", "1", "auto"]
    with pytest.raises(argparse.ArgumentTypeError, match="1 must be among them"):
        factors("0.5,auto")
    with pytest.raises(argparse.ArgumentTypeError, match="--keep-factor fast"):
        factors("1,fast")

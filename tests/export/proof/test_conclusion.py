"""The sentence that closes the table of ``verify``."""

import re

import pytest

from export.proof.conclusion import conclusion_of


def report(*ok, skipped=0):
    return {
        "first_links": [],
        "links": [{"name": f"link {n}", "ok": each} for n, each in enumerate(ok)],
        "weights": [],
        "questions": 200,
        "skipped": [{"name": "TensorRT", "reason": "no GPU"}] * skipped,
    }


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (report(True, True, skipped=1), "All 2 links hold: on 200 examples, each"),
        (report(True, True, skipped=1), "1 link was not compared: nothing is proved about it."),
        (report(True), "The one link holds: .* Nothing was left out."),
        (report(True, False), r"1 of 2 links does NOT hold: link 1\. Do not rely on"),
        (report(*[False] * 5, skipped=2), "5 of 5 links do NOT hold: .*link 2 and 2 more"),
        (
            report(*[False] * 5, skipped=2),
            "2 links were not compared: nothing is proved about them",
        ),
        (report(skipped=2), "Nothing was compared"),
    ],
)
def test_the_conclusion_says_what_holds_and_what_was_not_compared(made, sentence):
    assert re.search(sentence, conclusion_of(made))

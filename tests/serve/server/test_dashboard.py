"""docs/deploy/grafana.json: its queries name metrics and labels of a server, and no metric is left out."""

import json
import re
from pathlib import Path

import httpx
import openai
import pytest

from tests.serve.server.test_openai_client import asking

BOARD = Path(__file__).parents[3] / "docs" / "deploy" / "grafana.json"
OWN = re.compile(r"\bcomp_export_\w+")


@pytest.fixture(scope="module")
def board():
    return json.loads(BOARD.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def samples(running, uri):
    """Names of what ``/metrics`` has after answers and a refusal, and the labels of each."""
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    for model in ("tiny", "tiny-0.4"):
        request = {"model": model, "messages": asking(uri), "max_tokens": 3}
        client.chat.completions.create(**request)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**request | {"messages": asking(uri, "w " * 500)})
    found = {}
    for line in httpx.get(f"{running.url}/metrics").text.splitlines():
        match = re.match(r"(comp_export_\w+)\{(.*)\} ", line)
        if match:
            found.setdefault(match[1], set()).update(re.findall(r"(\w+)=", match[2]))
    return found


def queries(board):
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_every_query_names_metrics_that_are_there(board, samples):
    for query in queries(board):
        named = OWN.findall(query)
        assert named
        for name in named:
            assert name in samples, query
            grouped = {each for by in re.findall(r"by \((.*?)\)", query) for each in by.split(", ")}
            assert grouped <= samples[name], query
            assert "model_name" in samples[name]


def test_every_metric_is_on_the_dashboard(board, samples):
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in OWN.findall(str(board))}
    kept = {name for name in samples if not name.endswith("_created")}
    assert {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in kept} == shown


def test_the_dashboard_loads_anywhere(board):
    """No data source of one installation; panels have their own ids and do not overlap."""
    assert board["templating"]["list"][0]["type"] == "datasource"
    assert all(panel["datasource"]["uid"] == "${source}" for panel in board["panels"])
    ids = [panel["id"] for panel in board["panels"]]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(ids)) == len(set(places)) == len(ids)
    for query in queries(board):
        assert query.count("(") == query.count(")")
        assert "rate(" not in query or "$__rate_interval" in query

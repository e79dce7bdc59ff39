"""The page of a server: answers, kept tokens and times come from it, and its errors are shown."""

from dataclasses import replace

import httpx
import pytest
from click.testing import CliRunner

from comp.cli import cli
from comp.errors import CompExportError
from demo.pair import Pair
from demo.remote.client import Remote
from demo.server import serve_page_of
from serve.artifacts import DEFAULT_VARIANT
from serve.generation.options import GenerationOptions
from serve.server.models import Limits, load_models
from serve.server.settings import Server, Settings
from tests.demo.conftest import free_port
from tests.demo.test_server import both_done, browser, opened  # noqa: F401
from tests.serve.random_llava import noise
from tests.serve.server.conftest import Running

KEY = "a-key-of-some-length"
QUESTION = "what is it?"
EIGHT = GenerationOptions(max_new_tokens=8)


@pytest.fixture(scope="module")
def start(dense_artifact, compressed_artifact):
    """Start a server with both models, behind a key."""
    started = []

    def begin():
        places = [f"tiny={dense_artifact}", f"tiny-0.4={compressed_artifact}"]
        models = load_models(places, DEFAULT_VARIANT, Limits(rows=4, queue=32), "cpu", 1)
        started.append(Running(Server(models, Settings(keys=(KEY,)))))
        return started[-1]

    yield begin
    for each in started:
        each.stop()


@pytest.fixture(scope="module")
def served(start):
    return start()


@pytest.fixture(scope="module")
def remote_pair(served):
    return Pair.of_server(Remote.at(f"{served.url}/v1/", KEY))


def test_a_remote_answer_is_that_of_the_engine(remote_pair, dense, compressed, tmp_path):
    picture = tmp_path / "one.png"
    noise(3).save(picture)
    for which, engine in (("dense", dense), ("compressed", compressed)):
        here = engine.generate([picture], QUESTION, EIGHT)
        there = remote_pair.engine(which).generate([picture], QUESTION, EIGHT)
        assert there.text == here.text
        assert there.finish_reason == here.finish_reason
        assert there.prompt_tokens == here.prompt_tokens
        assert there.timings.decode_steps == here.timings.decode_steps
        assert there.ttft_ms > 0
        assert [(place, kept.tolist()) for place, kept in there.kept.seen()] == [
            (place, kept.tolist()) for place, kept in here.kept.seen()
        ]
        assert remote_pair.engine(which).manifest == engine.manifest
    assert remote_pair.can_scale
    fewer = replace(EIGHT, keep_factor=0.5)
    left = remote_pair.compressed.generate([picture], QUESTION, fewer).kept.seen()
    assert left[0][1].size < compressed.generate([picture], QUESTION, EIGHT).kept.seen()[0][1].size


def test_what_a_server_refuses_is_said_in_its_words(remote_pair, served, tmp_path):
    with pytest.raises(CompExportError, match="tokens"):
        remote_pair.dense.generate([noise(0)], "w " * 500, EIGHT)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(CompExportError, match="picture"):
        remote_pair.dense.generate([broken], QUESTION, EIGHT)
    with pytest.raises(CompExportError, match="--api-key-file"):
        Pair.of_server(Remote.at(served.url))


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (("tiny", "gone"), "no model 'gone' at .*, which has tiny, tiny-0.4: name both"),
        (("tiny-0.4", "tiny"), "the first must be dense, the second compressed"),
    ],
)
def test_models_that_a_server_lacks_are_named(served, models, words):
    with pytest.raises(CompExportError, match=words):
        Pair.of_server(Remote.at(served.url, KEY), models)


class Answers(Remote):
    """A server that says something else."""

    def get(self, path):
        return self.says[path]


def listing(says):
    server = Answers("http://127.0.0.1:1")
    object.__setattr__(server, "says", says)
    return server


def test_other_tasks_and_other_servers_are_refused(served):
    def own(endpoint, task):
        return {"endpoint": endpoint, "task": task}

    clip = {"id": "clip", "comp_export": own("/v1/embeddings", "retrieval")}
    with pytest.raises(CompExportError, match=r"clip is a retrieval model: .*comp-export demo RUN"):
        Pair.of_server(listing({"/v1/models": {"data": [clip]}}))
    with pytest.raises(CompExportError, match=r"lists no models of comp-export: is it a `comp-exp"):
        Pair.of_server(listing({"/v1/models": {"data": [{"id": "gpt"}]}}))
    twice = [
        {"id": name, "comp_export": own("/v1/chat/completions", "question")} for name in ("a", "b")
    ]
    manifest = httpx.get(
        f"{served.url}/v1/models/tiny/manifest", headers={"Authorization": f"Bearer {KEY}"}
    ).json()
    says = {f"/v1/models/{name}/manifest": manifest for name in ("a", "b")}
    with pytest.raises(CompExportError, match=r"no dense and compressed .* \(a, b\): name both"):
        Pair.of_server(listing(says | {"/v1/models": {"data": twice}}))


def refused(*arguments):
    result = CliRunner().invoke(cli, ["demo", *map(str, arguments)])
    assert result.exit_code != 0
    return result.output + str(result.exception)


def test_bad_starts_are_refused(tmp_path):
    port = ("--port", free_port())
    nobody = f"http://127.0.0.1:{free_port()}"
    assert f"no server answers at {nobody}" in refused("--server", nobody, *port)
    assert "give an address such as" in refused("--server", "127.0.0.1:8000", *port)
    secret = refused("--server", "http://me:hidden@127.0.0.1:8000", *port)
    assert "--api-key-file" in secret
    assert "hidden" not in secret
    assert "RUN is for a page without --server" in refused("runs/mine", "--server", nobody)
    assert "--threads is for a page without" in refused("--threads", 1, "--server", nobody)
    assert "--models is for --server" in refused("--models", "a", "b")
    key = tmp_path / "key.txt"
    key.write_text(KEY)
    key.chmod(0o644)
    assert "chmod 600" in refused("--server", nobody, "--api-key-file", key, *port)


def test_a_key_without_tls_is_noticed():
    assert Remote.at("http://10.0.0.1:8000", KEY).is_open
    assert not Remote.at("https://10.0.0.1:8000", KEY).is_open
    assert not Remote.at("http://127.0.0.1:8000", KEY).is_open
    assert not Remote.at("http://10.0.0.1:8000").is_open


@pytest.mark.browser
def test_the_page_of_a_server(browser, start):  # noqa: F811
    """Both answers, the kept tokens and the slider; then the server goes away, and the page says so."""
    served = start()
    port = free_port()
    remote = Remote.at(served.url, KEY)
    blocks = serve_page_of(remote, None, "127.0.0.1", port, block=False)
    try:
        page = opened(browser, f"http://127.0.0.1:{port}")
        assert f"both run at {served.url}" in page.inner_text("#ce-head")
        page.fill("#ce-question textarea", "what is on the left?")
        page.click("#ce-ask")
        both_done(page)
        for side in ("#ce-dense", "#ce-compressed"):
            assert page.inner_text(f"{side} .ce-answer").strip()
        assert page.locator("#ce-kept figure").count() == 3
        assert "8 of 16 stay" in page.inner_text("#ce-kept")
        assert "as the server measured" in page.inner_text("#ce-bars")
        page.fill("#ce-keep input[type=number]", "0.5")
        page.keyboard.press("Tab")
        page.get_by_text("4, 1 of 16 image tokens stay").wait_for()
        page.click("#ce-ask")
        page.get_by_text("4 of 16 stay").wait_for()
        served.stop()
        page.click("#ce-ask")
        page.get_by_text(f"no server answers at {served.url}").wait_for()
        assert page.foreign == []
        assert page.complaints == []
        page.close()
    finally:
        blocks.close()

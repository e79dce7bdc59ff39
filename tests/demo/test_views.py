"""The view of each task through the real server: over HTTP, and in a browser if available."""

import os
import re
from functools import partial

import pytest
from gradio_client import Client, handle_file
from PIL import Image

from demo import comparison
from demo.examples import page_captions, page_gallery, page_pairs
from demo.server import serve_page
from tests.demo.conftest import free_port
from tests.demo.test_cards import text_of
from tests.demo.test_gate import call
from tests.demo.test_server import both_done, browser, cleared, forget, opened, serious  # noqa: F401

HEADINGS = {
    "clip": "Same search, two models",
    "question": "Same question, two models",
    "caption": "Same picture, two captions",
    "statement": "Same statement, two verdicts",
    "retrieval": "Same search, two models",
}
# CLIP's page is fast; the others need a pruning each.
TASKS = ["clip", *(pytest.param(t, marks=pytest.mark.slow) for t in HEADINGS if t != "clip")]


@pytest.fixture(scope="module")
def url_of(run_of):
    """The address of a model's page, served at the first use."""
    urls, pages = {}, []

    def actual(name):
        if name not in urls:
            port = free_port()
            pages.append(serve_page(run_of(name), "127.0.0.1", port, "cpu", 1, block=False))
            urls[name] = f"http://127.0.0.1:{port}"
        return urls[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "DRAWING_SECONDS", 0.0)
        yield actual
        for page in pages:
            page.close()


@pytest.fixture
def pictures(tmp_path):
    """Files of the visitor's own."""
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for path in paths:
        Image.effect_noise((120, 90), 60).convert("RGB").save(path)
    return [handle_file(path) for path in paths]


def events_of(url, name, *inputs):
    """Return every update after a request: (original, compressed, bars, kept, remarks)."""
    client = Client(url, verbose=False)
    job = client.submit(*inputs, api_name=f"/{name}")
    job.result(timeout=60)
    return job.outputs()


def ended(shown):
    dense, compressed, bars, kept, remarks = shown[-1]
    assert any(word in remarks for word in ("= same", "≠ "))
    assert 'data-state="done"' in dense
    assert 'data-state="done"' in compressed
    assert bars.count("ce-bar-group") >= 3
    assert "ce-final" in kept
    assert not any(
        'data-state="working"' in a and 'data-state="working"' in b for a, b, *_ in shown
    )
    return dense, compressed, kept


@pytest.mark.parametrize("name", TASKS)
def test_the_header_matches_the_task(url_of, name):
    import urllib.request

    with urllib.request.urlopen(url_of(name)) as response:
        page = response.read().decode()
    assert HEADINGS[name] in page
    assert "not verified" in page
    assert "50 % of FLOPs removed" in page


@pytest.mark.slow
def test_a_question_is_answered_over_http(url_of, pair_of, pictures):
    shown = events_of(url_of("question"), "answer", pictures[0], "what is at the top?", 1)
    dense, compressed, kept = ended(shown)
    assert text_of(kept).count("stay") == 3
    options = comparison.GenerationOptions(max_new_tokens=64)
    for which, card in (("dense", dense), ("compressed", compressed)):
        alone = (
            pair_of("question")
            .engine(which)
            .generate([pictures[0]["path"]], "what is at the top?", options)
        )
        assert " ".join(alone.text.split()) in text_of(card)


@pytest.mark.slow
def test_a_caption_is_generated_over_http(url_of, pair_of, pictures):
    dense, compressed, kept = ended(
        events_of(url_of("caption"), "describe", pictures[0], "there is")
    )
    for which, card in (("dense", dense), ("compressed", compressed)):
        alone = pair_of("caption").engine(which).generate([pictures[0]["path"]], "there is")
        assert " ".join(f"there is {alone.text}".split()) in text_of(card)
    assert text_of(kept).count("stay") == 3


@pytest.mark.slow
def test_a_statement_is_judged_over_http(url_of, pair_of, pictures):
    own, pair = page_pairs()[0], pair_of("statement")
    text = own.statements[0][0]
    shown = events_of(url_of("statement"), "judge", *pictures, text)
    dense, compressed, kept = ended(shown)
    for which, card in (("dense", dense), ("compressed", compressed)):
        alone = pair.engine(which).judge([each["path"] for each in pictures], text)
        assert f"{100 * alone.probability:.1f} %" in text_of(card)
        assert str(alone.verdict) in text_of(card)
    assert "the first picture" in kept
    assert "the second picture" in kept
    assert text_of(kept).count("stay") == 6


@pytest.mark.parametrize("name", ["clip", pytest.param("retrieval", marks=pytest.mark.slow)])
def test_searches_are_ranked_over_http(url_of, pair_of, pictures, name):
    gallery, pair = page_gallery(), pair_of(name)
    dense, compressed, kept = ended(events_of(url_of(name), "pictures_for", gallery.captions[4]))
    for which, card in (("dense", dense), ("compressed", compressed)):
        ranking = pair.engine(which).rank(gallery.pictures, [gallery.captions[4]])
        order = (-ranking.of_images[0]).argsort(kind="stable").tolist()
        shown = re.findall(r'alt="\d: ([^"]*)"', card)
        assert shown == [gallery.captions[place] for place in order[:6]]
        rank = order.index(4) + 1
        expected = "✓ right one first" if rank == 1 else f"✗ right one: {rank} of 24"
        assert expected in text_of(card)
    assert "its first picture" in kept
    captions = "a fox.\n\n a wheel at the top. \na ram."
    dense, compressed, _ = ended(events_of(url_of(name), "describe", pictures[0], captions))
    best = pair.dense.rank([pictures[0]["path"]], ["a fox.", "a wheel at the top.", "a ram."])
    first = ["a fox.", "a wheel at the top.", "a ram."][int(best.of_texts[0].argmax())]
    assert f"1. {first}" in text_of(dense)
    assert "captions" in text_of(dense)
    assert "right one" not in text_of(dense)


ENDPOINTS = {
    "clip": ("describe", ["{picture}", "a fox."]),
    "question": ("answer", ["{picture}", "what is at the top?", 1.0]),
    "caption": ("describe", ["{picture}", ""]),
    "statement": ("judge", ["{picture}", "{picture}", "there is a fox."]),
    "retrieval": ("describe", ["{picture}", "a fox."]),
}


@pytest.mark.parametrize("name", TASKS)
def test_no_view_opens_files_of_the_server(url_of, name, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (30, 20), (1, 2, 3)).save(secret)
    endpoint, inputs = ENDPOINTS[name]
    for path in (str(secret), os.path.relpath(secret), "/dev/zero"):
        data = [{"path": path} if each == "{picture}" else each for each in inputs]
        kind, words = call(url_of(name), *data, name=endpoint)
        assert kind == "error"
        assert "is no picture of this page: upload the picture again" in words


def expect_error(browser, url, does, words):  # noqa: F811
    """Check the message after an action, and that the page still works."""
    page = opened(browser, url)
    does(page)
    page.get_by_text(words).first.wait_for()
    page.wait_for_selector("#ce-dense [data-state=ready]")
    assert page.complaints == []
    assert "Traceback" not in page.content()
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("name", TASKS)
def test_requests_in_a_browser_show_both_results(browser, url_of, name):  # noqa: F811
    page = opened(browser, url_of(name))
    page.click("#ce-ask")
    both_done(page)
    assert serious(page) == []
    for side in ("#ce-dense", "#ce-compressed"):
        times = page.eval_on_selector_all(
            f"{side} .ce-times dd", "all => all.map(e => e.innerText)"
        )
        assert float(times[-1].removesuffix("ms")) > 0
    assert page.foreign == []
    assert page.complaints == []
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()


@pytest.mark.browser
@pytest.mark.slow
def test_the_known_answer_of_a_chosen_picture_is_shown(browser, url_of):  # noqa: F811
    page = opened(browser, url_of("caption"))
    page.locator("#ce-gallery .thumbnail-item").nth(1).click()
    page.get_by_text(page_captions()[1].captions[0]).wait_for()
    cleared(page)
    page.click("#ce-ask")
    both_done(page)
    assert "things" in page.inner_text("#ce-dense .ce-chip")
    page.close()
    page = opened(browser, url_of("statement"))
    page.locator("#ce-gallery .thumbnail-item").nth(3).click()
    cleared(page)
    text, truth = page_pairs()[3].statements[1]
    page.locator("#ce-chips label").filter(has_text=text).click()
    both_done(page)
    verdict = page.inner_text("#ce-dense .ce-answer")
    mark = page.inner_text("#ce-dense .ce-chip")
    assert mark == ("✓ right" if verdict == str(truth) else f"✗ wrong: it is {str(truth).lower()}")
    page.close()


@pytest.mark.browser
def test_clicking_a_picture_ranks_its_captions(browser, url_of, tmp_path):  # noqa: F811
    page = opened(browser, url_of("clip"))
    page.locator("#ce-gallery .thumbnail-item").nth(5).click()
    both_done(page)
    assert page.locator("#ce-dense .ce-captions li").count() == 6
    assert "right one" in page.inner_text("#ce-dense .ce-chip")
    forget(page)
    page.get_by_text("Your own picture, other captions").click()
    own = tmp_path / "own.jpg"
    Image.effect_noise((90, 60), 80).convert("RGB").save(own)
    page.set_input_files("#ce-picture input[type=file]", own)
    page.wait_for_function("!document.querySelector('#ce-dense .ce-chip')")
    both_done(page)
    assert page.complaints == []
    page.close()


@pytest.mark.browser
def test_impossible_searches_are_reported(browser, url_of, tmp_path):  # noqa: F811
    url = url_of("clip")

    def rank(page, captions):
        page.get_by_text("Your own picture, other captions").click()
        page.fill("#ce-candidates textarea", captions)
        page.click("#ce-rank")

    def search(page, words):
        page.fill("#ce-question textarea", words)
        page.click("#ce-ask")

    def upload(page):
        fake = tmp_path / "fake.png"
        fake.write_bytes(b"no picture at all")
        page.get_by_text("Your own picture, other captions").click()
        page.set_input_files("#ce-picture input[type=file]", fake)

    expect_error(browser, url, lambda page: rank(page, " \n "), "no candidate captions")
    expect_error(browser, url, lambda page: rank(page, "a fox."), "Choose one of the pictures")
    expect_error(browser, url, lambda page: search(page, " "), "Write what the picture should show")
    expect_error(browser, url, lambda page: search(page, "fox " * 300), "positions: shorten it")
    expect_error(browser, url, upload, "fake.png is not a picture")


@pytest.mark.browser
@pytest.mark.slow
def test_impossible_requests_of_other_views_are_reported(browser, url_of):  # noqa: F811
    def removed(page):
        page.click("#ce-picture button[aria-label='Remove Image']")
        page.wait_for_selector("#ce-picture input[type=file]", state="attached")
        page.click("#ce-ask")

    def submit_text(page, words):
        page.fill("#ce-question textarea", words)
        page.click("#ce-ask")

    for name in ("question", "caption", "statement"):
        expect_error(browser, url_of(name), removed, "Choose one of the pictures")
        long = "fox " * 300
        submit_long = partial(submit_text, words=long)
        expect_error(browser, url_of(name), submit_long, "positions: shorten it")
    expect_error(
        browser, url_of("statement"), lambda page: submit_text(page, " "), "a statement is empty"
    )

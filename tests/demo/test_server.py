"""Unusable addresses are refused in one line; the page opens and sends no requests to other hosts."""

import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from comp.errors import CompExportError
from comp.pipeline.example_run import example_run
from comp.utils.address import check_address
from demo import comparison
from demo.examples import page_examples
from demo.screenshot import answered, facts_of, find_browser, forget, read_facts, recorded
from demo.server import serve_page
from tests.comp.data.test_images import png
from tests.demo.conftest import free_port
from tests.serve.random_llava import make_run

PATIENCE_MS = 60_000


def test_a_taken_port_is_named(run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(CompExportError, match=f"port {port} is taken .* --port"):
            serve_page(run, "127.0.0.1", port, "cpu", block=False)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(CompExportError, match=r"--host"):
        check_address("no-such-host.invalid", 7860)
    with pytest.raises(CompExportError, match=r"cannot listen on 192\.0\.2\.1"):
        check_address("192.0.2.1", 7860)


@pytest.fixture(scope="module")
def url(dense_artifact, compressed_artifact, tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("served"), dense_artifact, compressed_artifact)
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "DRAWING_SECONDS", 0.0)
        page = serve_page(path, "127.0.0.1", port, "cpu", threads=1, block=False)
        yield f"http://127.0.0.1:{port}"
        page.close()


def test_the_page_is_served(url):
    with urllib.request.urlopen(url) as response:
        assert b"Same question, two models" in response.read()


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser, url, width=1280):
    """A page that records its errors and its requests to other hosts."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    page.foreign, page.complaints = [], []
    local = (url, "data:", "blob:")
    page.on("request", lambda r: r.url.startswith(local) or page.foreign.append(r.url))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(url)
    answered(page)  # the first question, which the page asks by itself
    forget(page)
    return page


def both_done(page):
    """Wait for a new answer."""
    answered(page)
    for side in ("#ce-dense", "#ce-compressed"):
        page.wait_for_selector(f"{side} [data-state=done]")


@pytest.mark.browser
def test_a_question_shows_both_answers_and_their_times(browser, url, tmp_path):
    page = opened(browser, url)
    page.click("#ce-ask")
    both_done(page)
    for side in ("#ce-dense", "#ce-compressed"):
        assert page.inner_text(f"{side} .ce-answer").strip()
        times = page.eval_on_selector_all(
            f"{side} .ce-times dd", "all => all.map(e => e.innerText)"
        )
        assert all(float(times[place].removesuffix("ms")) > 0 for place in (0, 2))
    assert page.locator("#ce-kept figure").count() == 3
    assert page.locator("#ce-bars .ce-bar").count() >= 4
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert Image.open(tmp_path / "page.png").width == 1280
    assert page.foreign == []
    assert page.complaints == []
    page.close()


@pytest.mark.browser
def test_example_question_and_uploaded_picture_are_answered(browser, url, tmp_path):
    page = opened(browser, url)
    page.locator("#ce-gallery .thumbnail-item").nth(2).click()
    words = page_examples()[2].questions[1][0]
    chip = page.locator("#ce-chips label").filter(has_text=words)
    chip.click()
    both_done(page)
    assert page.input_value("#ce-question textarea") == words
    upload(page, tmp_path)
    page.wait_for_function("document.querySelectorAll('#ce-chips label').length === 4")
    forget(page)
    page.click("#ce-ask")
    both_done(page)
    assert page.complaints == []
    page.close()


def upload(page, tmp_path):
    """Put a picture of one's own in place of the one that is shown."""
    own = tmp_path / "own.jpg"
    Image.effect_noise((90, 60), 80).convert("RGB").save(own)
    page.click("#ce-picture button[aria-label='Remove Image']")
    page.set_input_files("#ce-picture input[type=file]", own)


@pytest.mark.browser
def test_stale_answers_are_cleared_and_typed_questions_stay(browser, url, tmp_path):
    page = opened(browser, url)
    box = "#ce-question textarea"
    assert page.input_value(box) == page_examples()[0].questions[0][0]
    page.locator("#ce-gallery .thumbnail-item").nth(1).click()
    cleared(page)
    offered = page_examples()[1].questions[0][0]
    page.wait_for_function(f"document.querySelector('{box}').value === {json.dumps(offered)}")
    page.fill(box, "is this mine?")
    page.click("#ce-ask")
    both_done(page)
    page.locator("#ce-gallery .thumbnail-item").nth(2).click()
    cleared(page)
    assert page.input_value(box) == "is this mine?"
    forget(page)
    page.click("#ce-ask")
    both_done(page)
    upload(page, tmp_path)
    cleared(page)
    page.wait_for_function("document.querySelectorAll('#ce-chips label').length === 4")
    assert page.input_value(box) == "is this mine?"
    assert page.complaints == []
    page.close()


def cleared(page):
    for side in ("#ce-dense", "#ce-compressed"):
        page.wait_for_selector(f"{side} [data-state=ready]")


@pytest.mark.browser
def test_the_slider_counts_tokens_and_drops_the_proof(browser, url):
    page = opened(browser, url)
    before = page.inner_text("#ce-count")
    assert "8, 4 of 16 image tokens stay after layers 1, 3" in before
    cost = page.inner_text("#ce-compressed .ce-costs dd")
    page.fill("#ce-keep input[type=number]", "0.5")
    page.keyboard.press("Tab")
    page.get_by_text("4, 1 of 16 image tokens stay").wait_for()
    cleared(page)
    page.get_by_text("not verified").first.wait_for()
    assert page.inner_text("#ce-compressed .ce-costs dd") != cost
    page.close()


@pytest.mark.browser
def test_the_page_is_accessible(browser, url):
    """axe-core finds nothing serious or critical, in both colour schemes."""
    for scheme in ("light", "dark"):
        page = opened(browser, f"{url}/?__theme={scheme}")
        assert serious(page) == []
        page.close()


def serious(page):
    """What axe-core finds of serious or critical impact."""
    results = Axe().run(page).response["violations"]
    return [
        (found["id"], node["html"][:200])
        for found in results
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


@pytest.mark.browser
def test_a_phone_scrolls_to_the_answer(browser, url):
    page = opened(browser, url, width=390)
    assert page.evaluate("window.scrollY") == 0
    page.click("#ce-ask")
    both_done(page)
    page.wait_for_function(
        "Math.abs(document.querySelector('#ce-remarks').getBoundingClientRect().top) < 100"
    )
    page.close()


@pytest.mark.browser
def test_explanations_are_shown_by_a_finger(browser, url):
    context = browser.new_context(has_touch=True, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    answered(page)
    tip = page.locator("#ce-dense .ce-costs .ce-tip").first
    shown = "each => getComputedStyle(each, '::after').content"
    assert tip.evaluate(shown) == "none"
    tip.tap()
    assert "multiply-accumulates" in tip.evaluate(shown)
    context.close()


@pytest.mark.browser
def test_a_too_long_prompt_is_reported_and_the_page_still_works(browser, url):
    page = opened(browser, url)
    page.fill("#ce-question textarea", "a " * 400)
    page.click("#ce-ask")
    page.get_by_text("256 positions").wait_for()
    page.wait_for_selector("#ce-dense [data-state=ready]")
    page.fill("#ce-question textarea", "what is at the top?")
    page.click("#ce-ask")
    both_done(page)
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("data", [b"no picture at all", png(60, 40)[:60]])
def test_a_file_other_than_a_picture_is_refused_at_once(browser, url, tmp_path, data):
    page = opened(browser, url)
    fake = tmp_path / "fake.png"
    fake.write_bytes(data)
    page.click("#ce-picture button[aria-label='Remove Image']")
    page.set_input_files("#ce-picture input[type=file]", fake)
    message = page.get_by_text("fake.png")
    message.first.wait_for()
    toast = page.locator(".toast-wrap").bounding_box()
    for card in page.locator(".ce-card").all():
        assert not overlap(toast, card.bounding_box())
    page.wait_for_selector("#ce-picture input[type=file]", state="attached")
    page.wait_for_function("!document.querySelector('#ce-picture img')")
    page.close()


def overlap(one, other):
    """Whether two boxes of the page share a pixel."""
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "width"), ("y", "height"))
    )


@pytest.mark.browser
def test_narrow_windows_do_not_scroll_sideways(browser, url):
    page = opened(browser, url, width=400)
    page.click("#ce-ask")
    both_done(page)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 400
    page.close()


@pytest.mark.browser
def test_screenshot_is_taken(browser, url, tmp_path):
    path = tmp_path / "shot.png"
    # In a process of its own: two of playwright's loops do not run in one.
    program = "import sys, pathlib; from demo.screenshot import photograph; "
    program += "photograph(sys.argv[1], pathlib.Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", program, url, str(path)], check=True, timeout=120)
    assert Image.open(path).width == 1280


def test_a_picture_records_the_numbers_of_its_run(run, tmp_path):
    path = tmp_path / "page.png"
    facts = facts_of(run)
    assert facts["run"] == run.name
    path.write_bytes(recorded(png(8, 8), facts))
    assert read_facts(path) == facts
    path.write_bytes(png(8, 8))
    assert read_facts(path) == {}


def test_the_picture_of_the_page_shows_the_numbers_that_stand_beside_it():
    """``python -m demo.screenshot RUN docs/page.png``, of a copy of the example run."""
    root = Path(__file__).parents[2]
    facts = read_facts(root / "docs" / "page.png")
    example = example_run("tiny-llava", 0.62, 0)
    assert facts["rate"] == round(example.read_record()["rate"], 4)
    report = json.loads((example.reports / "eval.json").read_text(encoding="utf-8"))
    measured = {which: report[which]["accuracy"] for which in ("dense", "compressed")}
    assert facts["accuracy"] == pytest.approx(measured | {"n": report["data"]["n"]})
    shown = " → ".join(f"{100 * value:.1f}" for value in measured.values())
    tutorial = (root / "docs" / "tutorials" / "first-run.md").read_text(encoding="utf-8")
    _, _, beside = tutorial.partition("](../page.png)")
    assert f"{shown} % of {report['data']['n']} test questions" in " ".join(beside.split())

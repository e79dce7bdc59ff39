"""Unusable addresses are refused in one line; the page opens and sends no requests to other hosts."""

import socket
import subprocess
import sys
import urllib.request

import pytest
from PIL import Image

from comp.errors import CompExportError
from demo import comparison
from demo.examples import page_examples
from demo.screenshot import find_browser
from demo.server import check_address, serve_page
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
    page.wait_for_selector("#ce-ask")
    return page


def both_done(page):
    for side in ("#ce-dense", "#ce-compressed"):
        page.wait_for_selector(f"{side} [data-state=done]")


@pytest.mark.browser
def test_a_question_shows_both_answers_and_their_times(browser, url, tmp_path):
    page = opened(browser, url)
    page.click("#ce-ask")
    both_done(page)
    page.wait_for_selector("#ce-kept figure img")
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
    own = tmp_path / "own.jpg"
    Image.effect_noise((90, 60), 80).convert("RGB").save(own)
    page.click("#ce-picture button[aria-label='Remove Image']")
    page.set_input_files("#ce-picture input[type=file]", own)
    page.wait_for_function("document.querySelectorAll('#ce-chips label').length === 4")
    page.click("#ce-ask")
    both_done(page)
    assert page.complaints == []
    page.close()


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
def test_a_file_other_than_a_picture_is_reported(browser, url, tmp_path):
    page = opened(browser, url)
    fake = tmp_path / "fake.png"
    fake.write_bytes(b"no picture at all")
    page.click("#ce-picture button[aria-label='Remove Image']")
    page.set_input_files("#ce-picture input[type=file]", fake)
    page.wait_for_function("document.querySelectorAll('#ce-chips label').length === 4")
    page.click("#ce-ask")
    page.get_by_text("fake.png is not a picture").wait_for()
    page.close()


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

"""Take a screenshot of the page with headless Chromium: ``python -m demo.screenshot RUN OUT.png``.

The PNG records the numbers of the run that it shows (``facts_of``). A test compares them with the numbers
beside the picture.
"""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import click
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from comp.errors import CompExportError
from comp.runs import open_run
from comp.utils.files import writing
from demo.reports import RunReports

FACTS = "comp-export"  # the text chunk of the PNG that holds the facts
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1280, 860
PATIENCE_MS = 120_000
SETTLING_MS = 600  # for an update to arrive, and for transitions


def find_browser() -> str | None:
    """The path of an installed Chromium, or ``None``."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def photograph(
    url: str,
    path: Path,
    question: str | None = None,
    width: int = WIDTH,
    picture: int | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Open the page of any task, submit a request, wait for both results, and save a screenshot.

    Args:
        url: where the page is served.
        path: PNG to write.
        question: the question, statement, caption or beginning to enter; by default the page's first
            text, which it asks by itself.
        width: width of the window, in pixels.
        picture: index of the page's picture to click first; for retrieval it is then described.
        facts: the run's numbers, to be recorded in the PNG.

    Raises:
        CompExportError: no Chromium is installed.
    """
    from playwright.sync_api import sync_playwright

    browser_path = find_browser()
    if browser_path is None:
        raise CompExportError("no Chromium found: install one, such as `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--force-color-profile=srgb"]
        )
        page = browser.new_page(viewport={"width": width, "height": HEIGHT})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        page.wait_for_selector("#ce-ask")
        answered(page)
        if question is not None or picture is not None:
            forget(page)
        if picture is not None:
            page.locator("#ce-gallery .thumbnail-item").nth(picture).click()
            page.wait_for_timeout(SETTLING_MS)
        if question is not None:
            page.fill("#ce-question textarea", question)
        asks_itself = page.locator("#ce-gallery.ce-asks").count()
        if question is not None or (picture is not None and not asks_itself):
            page.click("#ce-ask")
        answered(page)
        page.evaluate("window.scrollTo(0, 0)")
        page.mouse.move(0, 0)
        page.wait_for_timeout(SETTLING_MS)
        with writing(path) as temporary:
            temporary.write_bytes(recorded(page.screenshot(full_page=True), facts or {}))
        browser.close()


def answered(page: Any) -> None:
    """Wait for the clocks and the kept tokens of a new request."""
    page.wait_for_selector("#ce-bars .ce-measured:not([data-old])")
    page.wait_for_selector("#ce-kept .ce-final:not([data-old])")


def forget(page: Any) -> None:
    """Mark the results that are shown, so that the next ones can be told from them."""
    marking = "all => all.forEach(each => { each.dataset.old = 1 })"
    page.eval_on_selector_all("#ce-bars .ce-measured, #ce-kept .ce-final, .ce-card", marking)


def facts_of(run: Path) -> dict[str, Any]:
    """Return name, model, rate and accuracy of a run: the numbers beside its picture.

    Raises:
        CompExportError: there is no run.
    """
    directory = open_run(run)
    record, accuracy = directory.read_record(), RunReports.read(directory.reports).accuracy
    return {
        "run": directory.path.name,
        "model": record.get("model"),
        "rate": round(float(record.get("rate", 0.0)), 4),
        "accuracy": None
        if accuracy is None
        else {"dense": accuracy.dense, "compressed": accuracy.compressed, "n": accuracy.n},
    }


def recorded(png: bytes, facts: dict[str, Any]) -> bytes:
    """Return a PNG with the facts in a text chunk."""
    chunks, stream = PngInfo(), io.BytesIO()
    chunks.add_text(FACTS, json.dumps(facts))
    Image.open(io.BytesIO(png)).save(stream, "PNG", pnginfo=chunks, optimize=True)
    return stream.getvalue()


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts that a picture of the page records; empty if there are none."""
    with Image.open(path) as image:
        facts: dict[str, Any] = json.loads(getattr(image, "text", {}).get(FACTS, "{}"))
    return facts


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--question")
@click.option("--picture", type=int)
@click.option("--width", type=int, default=WIDTH, show_default=True)
@click.option("--port", type=int, default=7869, show_default=True)
def _main(
    run: Path, out: Path, question: str | None, picture: int | None, width: int, port: int
) -> None:
    """Serve RUN's page and save a screenshot as OUT."""
    from demo.server import serve_page

    page = serve_page(run, "127.0.0.1", port, "auto", block=False)
    try:
        photograph(f"http://127.0.0.1:{port}", out, question, width, picture, facts_of(run))
    finally:
        page.close()


if __name__ == "__main__":
    _main()

"""Take a screenshot of the page with headless Chromium: ``python -m demo.screenshot RUN OUT.png``."""

import shutil
from pathlib import Path

import click

from comp.errors import CompExportError
from comp.utils.files import writing

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
) -> None:
    """Open the page of any task, submit a request, wait for both results, and save a screenshot.

    Args:
        url: where the page is served.
        path: PNG to write.
        question: the question, statement, caption or beginning to enter; by default the page's first
            text.
        width: width of the window, in pixels.
        picture: index of the page's picture to click first; for retrieval it is then described.

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
        if picture is not None:
            page.locator("#ce-gallery .thumbnail-item").nth(picture).click()
            page.wait_for_timeout(SETTLING_MS)
        if question is not None:
            page.fill("#ce-question textarea", question)
        if picture is None or not page.locator("#ce-gallery.ce-asks").count():
            page.click("#ce-ask")
        page.wait_for_selector("#ce-kept .ce-final")
        page.wait_for_timeout(SETTLING_MS)
        with writing(path) as temporary:
            temporary.write_bytes(page.screenshot(full_page=True))
        browser.close()


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
        photograph(f"http://127.0.0.1:{port}", out, question, width, picture)
    finally:
        page.close()


if __name__ == "__main__":
    _main()

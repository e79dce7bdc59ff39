"""Photographing the page with a headless Chromium: ``python -m demo.screenshot RUN OUT.png``."""

import shutil
from pathlib import Path

import click

from comp.errors import CompExportError
from comp.files import writing

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1280, 860
PATIENCE_MS = 120_000


def find_browser() -> str | None:
    """The path of an installed Chromium, or ``None``."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def photograph(url: str, path: Path, question: str | None = None, width: int = WIDTH) -> None:
    """Open the page, ask, wait for both answers, and save a picture of it.

    Args:
        url: where the page is served.
        path: PNG to write.
        question: what to ask; the page's first question when left out.
        width: of the window, in pixels.

    Raises:
        CompExportError: when no Chromium is installed.
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
        if question is not None:
            page.fill("#ce-question textarea", question)
        page.click("#ce-ask")
        page.wait_for_selector("#ce-kept figure img")
        page.wait_for_timeout(600)  # for the last transitions
        with writing(path) as temporary:
            temporary.write_bytes(page.screenshot(full_page=True))
        browser.close()


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--question")
@click.option("--width", type=int, default=WIDTH, show_default=True)
@click.option("--port", type=int, default=7869, show_default=True)
def _main(run: Path, out: Path, question: str | None, width: int, port: int) -> None:
    """Serve RUN's page and save a picture of it as OUT."""
    from demo.server import serve_page

    page = serve_page(run, "127.0.0.1", port, "auto", block=False)
    try:
        photograph(f"http://127.0.0.1:{port}", out, question, width)
    finally:
        page.close()


if __name__ == "__main__":
    _main()

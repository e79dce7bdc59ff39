"""Build the Gradio page: the header, and the view of the task."""

from importlib.resources import files
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from comp.registry.code import resolve
from comp.registry.tasks import TASKS
from demo.cards import base as cards
from demo.gate import Gate, Page, sweeping
from demo.pair import Pair
from demo.uploads import MAX_FILE_BYTES, Uploads

TITLE = "comp-export"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


def build_page(pair: Pair[Any], uploads: Uploads) -> gr.Blocks:
    """Build the page for a pair of engines; launch it with ``launch_options``.

    Args:
        pair: the engines.
        uploads: visitors' files; Gradio must know the folder before (``process_uploads``).

    Raises:
        CompExportError: a model cannot process the page's own pictures and texts.
    """
    with Page(uploads, title=TITLE, analytics_enabled=False, fill_width=True) as page:
        header = gr.HTML(cards.header(pair), elem_id="ce-head")
        resolve(TASKS[pair.task].view)(pair, header)
    return page


def launch_options(uploads: Uploads) -> dict[str, Any]:
    """Theme, privacy and limits of the page, as arguments of ``Blocks.launch``: nothing is fetched."""
    theme = gr.themes.Base(
        font=FONTS,
        font_mono=["ui-monospace", "monospace"],
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
    )
    return {
        "theme": theme,
        "css": (files("demo") / "style.css").read_text(encoding="utf-8"),
        "footer_links": [],
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "max_file_size": MAX_FILE_BYTES,
        "app_kwargs": {
            "middleware": [Middleware(Gate, uploads=uploads)],
            "lifespan": sweeping(uploads),
        },
        "quiet": True,
    }

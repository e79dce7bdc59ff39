"""The Gradio page: the header, and the view of the task."""

from importlib.resources import files
from typing import Any

import gradio as gr

from demo import cards
from demo.pair import Pair
from demo.views import VIEWS

TITLE = "comp-export"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


def build_page(pair: Pair[Any]) -> gr.Blocks:
    """The page for a pair of engines; start it with ``launch_options``.

    Raises:
        CompExportError: a model cannot take the page's own pictures and texts.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(cards.header(pair))
        VIEWS[pair.task](pair)
    return page


def launch_options() -> dict[str, Any]:
    """Look and privacy of the page, as arguments of ``Blocks.launch``: nothing is fetched."""
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
        "max_file_size": "64mb",
        "quiet": True,
    }

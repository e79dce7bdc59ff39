"""Use the Python API as typed code of a user does: mypy reads it (``make check``), nothing runs it."""

from pathlib import Path

from PIL import Image

import comp
import export
import serve


def first_run(picture: Image.Image) -> str:
    """Prune, export, verify and ask, as docs/how-to/python-api.md does."""
    run = comp.prune("tiny-llava", rate=0.4, out="runs/first", recover="none", stages=2)
    export.onnx(run, precision="float16")
    report: dict[str, object] = export.verify(run, questions=4)
    assert report["ok"]
    engine = serve.load(run, task="question", device="cpu", threads=1)
    answer = engine.generate([picture], "what is it?", serve.GenerationOptions(max_new_tokens=8))
    texts = [each.text for each in engine.generate_batch([([picture], "what is it?")])]
    first: float = answer.ttft_ms
    return f"{answer.text} {texts} {first}"


def other_tasks(folder: Path, picture: Image.Image) -> list[object]:
    """Load engines of the other tasks; without a task the engine is tested for its type."""
    caption: str = serve.load(folder, task="caption").generate([picture]).text
    judgement = serve.load(folder, task="statement").judge([picture, picture], "they are alike")
    ranking = serve.load(folder, task="retrieval", dense=True).rank([picture], ["a cat", "a dog"])
    unknown = serve.load(folder, backend="onnxruntime")
    if isinstance(unknown, serve.Engine):
        return [caption, judgement, ranking, unknown.generate([picture], "what?").text]
    return [caption, judgement, ranking]


def events(engine: serve.Engine, picture: Image.Image) -> str:
    """Read an answer as it comes."""
    return "".join(
        event.text
        for event in engine.stream([picture], "what?")
        if isinstance(event, serve.TokenText)
    )


class Stages(comp.Callback):
    """Prints stages."""

    def on_progress(self, task: str, done: float, total: float) -> None:
        print(task, done / total)

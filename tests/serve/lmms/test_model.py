"""lmms-eval finds the model ``comp_export``, and measures what ``comp-export eval`` measures."""

import shutil
from pathlib import Path

import pytest

import comp
import serve
from comp.data.embedded import embedded_examples
from comp.errors import CompExportError
from comp.plan import DropPlan, PruningPlan, Workload
from export.exporter import Origin, export_artifact
from serve.generation.options import GenerationOptions
from tests.serve.random_llava import make_run, noise

pytest.importorskip(
    "lmms_eval", reason="lmms-eval needs an environment of its own: pip install '.[serve,lmms]'"
)
TASK = Path(__file__).with_name("task")
QUESTIONS = 24
OPTIONS = GenerationOptions(max_new_tokens=16)
MODEL = Path(comp.__file__).parent / "models" / "tiny-llava"


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """Keep lmms-eval and its data sets off the network and out of the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of tiny-llava; its plan drops most image tokens after two blocks and cuts nothing."""
    plan = PruningPlan(
        family="llava",
        model="tiny-llava",
        method="test",
        rate=0.4,
        workload=Workload(image_tokens=144, text_tokens=13),
        macs_dense=1000,
        macs=600,
        blocks=(),
        drops=(DropPlan(after_layer=2, vision_keep_ratio=0.2, text_keep_ratio=1.0),),
    )
    folder = tmp_path_factory.mktemp("tiny-llava")
    export_artifact(MODEL, folder / "onnx-dense", Origin("tiny-llava"))
    export_artifact(MODEL, folder / "onnx", Origin.of_plan(plan), plan=plan)
    return make_run(folder, folder / "onnx-dense", folder / "onnx")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The folder of the task, with the first test questions of EmojiScenes as its data."""
    import datasets

    folder = tmp_path_factory.mktemp("task")
    shutil.copytree(TASK, folder, dirs_exist_ok=True)
    examples = embedded_examples("question", "test", QUESTIONS)
    rows = [
        {"image": each.image, "question": each.question, "answer": each.answer}
        for each in (examples[index] for index in range(QUESTIONS))
    ]
    columns = {"image": datasets.Image()}
    columns |= {name: datasets.Value("string") for name in ("question", "answer")}
    table = datasets.Dataset.from_list(rows, features=datasets.Features(columns))
    table.to_parquet(folder / "test.parquet")
    file = folder / "emoji_scenes.yaml"
    file.write_text(file.read_text().replace("DATA", str(folder / "test.parquet")))
    return folder


def measured(run, task, artifact, **changes):
    """What lmms-eval reports of an artifact, with every answer."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=str(task), model_name="comp_export")
    return simple_evaluate(
        "comp_export",
        model_args=f"run={run},artifact={artifact},device=cpu,threads=1",
        tasks=["emoji_scenes"],
        task_manager=manager,
        batch_size=8,
        bootstrap_iters=0,
        verbosity="ERROR",
        **changes,
    )


@pytest.mark.slow
def test_dense_and_compressed_score_as_eval_does(run, task):
    expected = serve.evaluate(run, limit=QUESTIONS, max_new_tokens=16, device="cpu", threads=1)
    for artifact in ("dense", "compressed"):
        results = measured(run, task, artifact)
        engine = serve.load(run, dense=artifact == "dense", device="cpu", threads=1)
        given = {
            each["doc_id"]: each["filtered_resps"] for each in results["samples"]["emoji_scenes"]
        }
        for index in range(QUESTIONS):
            example = embedded_examples("question", "test", QUESTIONS)[index]
            answer = engine.generate([example.image], example.question, OPTIONS)
            assert given[index] == [answer.text]
        score = results["results"]["emoji_scenes"]["exact_match,none"]
        assert score == pytest.approx(expected[artifact]["accuracy"])
    assert expected["dense"]["accuracy"] > expected["compressed"]["accuracy"] > 0


@pytest.mark.slow
def test_a_task_that_samples_is_refused(run, task):
    with pytest.raises(CompExportError, match=r"emoji_scenes samples \(temperature=0.7\)"):
        measured(run, task, "compressed", gen_kwargs="temperature=0.7", limit=1)


def model(artifact):
    from serve.lmms.model import CompExport

    return CompExport(run=artifact, device="cpu", threads=1, batch_size="2")


def request(wanted, visuals, doc_id=0):
    from lmms_eval.api.instance import Instance

    arguments = ("what is this?", wanted, lambda doc: visuals, doc_id, "gqa", "test")
    metadata = {"task": "gqa", "doc_id": doc_id, "repeats": 1}
    return Instance("generate_until", arguments, 0, metadata)


def test_answers_come_in_the_order_of_requests(compressed, compressed_artifact):
    """Of several lengths, options and numbers of pictures; they are those of one question at a time."""
    answering = model(compressed_artifact)
    answering.task_dict = {"gqa": {"test": [{}] * 6}}
    pictures = [noise(seed) for seed in range(3)]
    shown = [pictures[:1], [], pictures[1:], pictures[:1], pictures[2:], []]
    longest = [8, 4, 8, 4, 8, 8]
    requests = [
        request({"max_new_tokens": length}, visuals, place)
        for place, (length, visuals) in enumerate(zip(longest, shown, strict=True))
    ]
    answers = answering.generate_until(requests)
    for answer, length, visuals in zip(answers, longest, shown, strict=True):
        alone = compressed.generate(
            visuals, "what is this?", GenerationOptions(max_new_tokens=length)
        )
        assert answer.text == alone.text
        assert answer.token_counts.output_tokens == len(alone.token_ids)


def test_what_the_model_does_not_do_is_refused(compressed_artifact, monkeypatch):
    answering = model(compressed_artifact)
    answering.task_dict = {"gqa": {"test": [{}]}}
    for visuals, message in (
        ([noise(0)] * 20, "give fewer images"),
        (["film.mp4"], "question 0 of gqa shows a str, no picture"),
    ):
        with pytest.raises(CompExportError, match=message):
            answering.generate_until([request({}, visuals)])
    with pytest.raises(
        CompExportError, match="gqa: comp_export generates and gives no likelihoods"
    ):
        answering.loglikelihood([request({}, [])])
    with pytest.raises(CompExportError, match="gqa: comp_export answers one question at a time"):
        answering.generate_until_multi_round([request({}, [])])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CompExportError, match="2 processes: comp_export runs in one"):
        model(compressed_artifact)

r"""OpenVINO GenAI, a rival on CPUs: a LLaVA that optimum-intel converted; dense only.

    pip install openvino-genai
    optimum-cli export openvino -m WORK/llava-s-seed0/checkpoint --task image-text-to-text \
      --weight-format int8 DIR/int8        # and fp16; int4 with --group-size 64 --ratio 1.0 --sym

optimum-intel requires another transformers than this project: convert in a separate environment.
"""

from typing import Any

import numpy as np
from PIL import Image

from comp.errors import CompExportError
from rivals.base import Answered, Loaded, Stage
from run_files import Which

UNKNOWN = -1  # the pipeline returns text, not tokens
MOST_WORDS = 8  # that its template may have fewer than the others'


def load_genai(stage: Stage, which: Which, precision: str) -> Loaded:
    """Load the pipeline from the files of a precision.

    Raises:
        CompExportError: the compressed model; missing files; openvino-genai is not installed.
    """
    if which == "compressed":
        raise CompExportError(
            "not measured: GenAI runs what optimum-intel converts, which does not know slim models "
            "(and GenAI's own pruning of image tokens, CDPruner, does nothing for a LLaVA)"
        )
    files = None if stage.files.genai is None else stage.files.genai / precision
    if files is None or not files.is_dir():
        raise CompExportError(
            f"no converted model in {precision}: --genai DIR with DIR/{precision}; "
            "benchmarks/rivals/genai.py says how to make it"
        )
    try:
        import openvino
        import openvino_genai
    except ImportError as error:
        raise CompExportError(
            "openvino_genai is not installed: pip install openvino-genai"
        ) from error
    settings = stage.settings
    pipeline = openvino_genai.VLMPipeline(str(files), "CPU", INFERENCE_NUM_THREADS=settings.threads)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = settings.new_tokens, True, False

    def run(image: Image.Image, prompt: str) -> Any:
        pixels = openvino.Tensor(np.asarray(image.convert("RGB")))
        return pipeline.generate(prompt, images=[pixels], generation_config=config).perf_metrics

    size = stage.files.plan.workload
    side = Image.new("RGB", (64, 64))
    prompt, wanted = settings.prompt, size.image_tokens + size.text_tokens
    # Its template may have fewer tokens: words are added to reach the same length.
    for _ in range(MOST_WORDS):
        lacking = wanted - run(side, prompt).get_num_input_tokens()
        if lacking <= 0:
            break
        prompt += " w1" * lacking

    def answer(image: Image.Image) -> Answered:
        metrics = run(image, prompt)
        count = metrics.get_num_generated_tokens()
        return Answered(
            prepare_ms=0.0,
            ttft_ms=metrics.get_ttft().mean,
            decode_ms=metrics.get_tpot().mean * (count - 1),
            prompt_tokens=metrics.get_num_input_tokens(),
            token_ids=(UNKNOWN,) * count,
        )

    bytes_ = sum(path.stat().st_size for path in files.iterdir())
    return Loaded(answer, {"openvino_genai": openvino_genai.__version__, "bytes": bytes_})

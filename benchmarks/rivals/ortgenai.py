r"""The graph of ONNX Runtime GenAI's builder, a rival on CPUs: a LLaVA's decoder; dense only.

    pip install onnxruntime-genai onnxscript

GenAI does not run a whole LLaVA. So its builder writes the decoder and torch the image tower, and ONNX
Runtime runs both as GenAI would: one graph for prompt and steps, caches written in place. int8 is ONNX
Runtime's dynamic quantisation of both graphs; int4 is the builder's own, computed in 8 bits, with the int8
tower.
"""

import importlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession, OrtValue, SessionOptions
from PIL import Image
from torch import Tensor
from transformers import LlamaForCausalLM, LlavaForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from comp.checkpoints.locate import read_config
from comp.errors import CompExportError
from comp.utils.files import writing_directory
from rivals.base import Answered, Loaded, Stage, installed
from rivals.torch_models import processor_of, prompt_text
from run_files import RunFiles, Which

INSTALL = "pip install onnxruntime-genai onnxscript"
BUILDER = "onnxruntime_genai.models.builder"
DECODER, TOWER, TABLE = "model.onnx", "tower.onnx", "embeddings.npy"
PAST = "past_key_values."
CPU = ["CPUExecutionProvider"]


def load_ortgenai(stage: Stage, which: Which, kind: str) -> Loaded:
    """Load the builder's graph with weights of a kind in ONNX Runtime.

    Raises:
        CompExportError: the compressed model; onnxruntime-genai or onnxscript is not installed.
    """
    if which == "compressed":
        raise CompExportError(
            "not measured: the builder's graph of a Llama has one width for all of its layers, and drops no "
            "tokens"
        )
    folder = ortgenai_files(stage.files, kind)
    settings, processor = stage.settings, processor_of(stage.files)
    text, size = prompt_text(processor, settings.prompt), stage.files.plan.workload
    places = size.image_tokens + size.text_tokens + settings.new_tokens
    model = _Model(folder, settings.threads, places, _head_width(stage.files))
    image_token = processor.image_token_id

    def answer(image: Image.Image) -> Answered:
        began = perf_counter()
        inputs = processor(images=image, text=text, return_tensors="np")
        ids = inputs["input_ids"][0]
        prepared = perf_counter()
        tokens = [model.begin(inputs["pixel_values"], ids, ids == image_token)]
        first = perf_counter()
        while len(tokens) < settings.new_tokens:
            tokens.append(model.step(tokens[-1]))
        ended = perf_counter()
        return Answered(
            prepare_ms=1e3 * (prepared - began),
            ttft_ms=1e3 * (first - began),
            decode_ms=1e3 * (ended - first),
            prompt_tokens=len(ids),
            token_ids=tuple(tokens),
        )

    bytes_ = sum(path.stat().st_size for path in folder.iterdir())
    return Loaded(answer, {"onnxruntime": onnxruntime.__version__, "bytes": bytes_})


def ortgenai_files(files: RunFiles, kind: str) -> Path:
    """Write decoder, tower and embeddings with weights of a kind, unless they exist.

    Raises:
        CompExportError: onnxruntime-genai or onnxscript is not installed.
    """
    folder = files.model / f"ortgenai-{kind}"
    if folder.exists():
        return folder
    single = folder if kind == "fp32" else ortgenai_files(files, "fp32")
    with installed(INSTALL), writing_directory(folder) as temporary:
        for package in ("onnxruntime_genai", "onnxscript"):
            importlib.import_module(package)
        if kind == "fp32":
            model = _dense(files)
            np.save(temporary / TABLE, model.get_input_embeddings().weight.detach().numpy())
            _write_tower(model, temporary / TOWER)
        else:
            os.link(single / TABLE, temporary / TABLE)
            _quantize(single / TOWER, temporary / TOWER)
        if kind == "int8":
            _quantize(single / DECODER, temporary / DECODER)
        else:
            _write_decoder(files, temporary, kind)
    return folder


class _Model:
    """Both graphs in memory, with one sequence."""

    def __init__(self, folder: Path, threads: int, places: int, width: int) -> None:
        options = SessionOptions()
        options.intra_op_num_threads = threads
        self._tower = InferenceSession(folder / TOWER, options, providers=CPU)
        self._decoder = InferenceSession(folder / DECODER, options, providers=CPU)
        self._table = np.load(folder / TABLE)
        self._binding = self._decoder.io_binding()
        self._length = 0
        inputs = {given.name: given.shape for given in self._decoder.get_inputs()}
        for name, shape in inputs.items():
            if name.startswith(PAST):
                # The value owns its memory.
                cache = OrtValue.ortvalue_from_numpy(
                    np.zeros((1, shape[1], places, width), np.float32)
                )
                self._binding.bind_ortvalue_input(name, cache)
                self._binding.bind_ortvalue_output(name.replace(PAST, "present."), cache)

    def begin(
        self, pixels: NDArray[np.float32], ids: NDArray[np.int64], of_image: NDArray[np.bool_]
    ) -> int:
        """Run a prompt and return the likeliest next token."""
        states = self._table[ids]
        states[of_image] = self._tower.run(None, {"pixel_values": pixels})[0]
        self._length = 0
        return self._read(states)

    def step(self, token: int) -> int:
        """Run one more token and return the likeliest next one."""
        return self._read(self._table[token : token + 1])

    def _read(self, states: NDArray[np.float32]) -> int:
        self._length += len(states)
        binding = self._binding
        binding.bind_cpu_input("inputs_embeds", states[None])
        binding.bind_cpu_input("attention_mask", np.ones((1, self._length), np.int64))
        binding.bind_output("logits")
        self._decoder.run_with_iobinding(binding)
        logits = binding.get_outputs()[-1].numpy()
        return int(logits[0, -1].argmax())


def _head_width(files: RunFiles) -> int:
    text = read_config(files.checkpoint())["text_config"]
    return text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]


def _dense(files: RunFiles) -> LlavaForConditionalGeneration:
    disable_progress_bar()
    return LlavaForConditionalGeneration.from_pretrained(
        files.checkpoint(), dtype=torch.float32
    ).eval()


class _Tower(torch.nn.Module):
    """An image to the decoder's image features, ``[1, 3, H, W]`` to ``[tokens, width]``."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self._model = model.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self._model.get_image_features(pixel_values=pixel_values).pooler_output[0]


def _write_tower(model: LlavaForConditionalGeneration, path: Path) -> None:
    for noisy in ("onnx_ir", "torch.onnx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    side = model.config.vision_config.image_size
    torch.onnx.export(
        _Tower(model).eval(),
        (torch.zeros(1, 3, side, side),),
        path,
        input_names=["pixel_values"],
        output_names=["features"],
        dynamo=True,
        external_data=True,
        verbose=False,
    )


def _write_decoder(files: RunFiles, folder: Path, kind: str) -> None:
    """Run the builder on the decoder, saved as a separate checkpoint."""
    model = _dense(files)
    with torch.device("meta"):
        text = LlamaForCausalLM(model.config.text_config)
    weights = {
        f"model.{name}": value for name, value in model.model.language_model.state_dict().items()
    }
    text.load_state_dict(weights | {"lm_head.weight": model.lm_head.weight}, assign=True)
    extra_options = [
        "exclude_embeds=true",
        "prune_lm_head=true",
        "accuracy_level=4",
        "hf_remote=false",
    ]
    with TemporaryDirectory(dir=folder.parent) as place:
        text.save_pretrained(place)
        shutil.copy(files.checkpoint() / "tokenizer.json", place)
        shutil.copy(files.checkpoint() / "tokenizer_config.json", place)
        command = [sys.executable, "-m", BUILDER, "-i", place, "-o", str(folder), "-c", place]
        command += ["-p", kind, "-e", "cpu", "--extra_options", *extra_options]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CompExportError(f"onnxruntime-genai's builder failed: {done.stderr.strip()[-300:]}")


def _quantize(single: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        single,
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )

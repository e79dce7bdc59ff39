r"""llama.cpp, a rival on CPUs, through llama-cpp-python: a LLaVA as GGUF; dense only.

    pip install llama-cpp-python gguf

This module writes the files from the checkpoint's own weights: llama.cpp's converter does not support a
tokenizer like the random checkpoint's, and none is needed, because prompts are given as token ids. The
image tower stays in float16, as projectors for llama.cpp are distributed.
"""

import ctypes
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.checkpoints.locate import read_config
from comp.checkpoints.tying import LM_HEAD
from comp.errors import CompExportError
from comp.utils.files import writing
from export.weights.checkpoint import CheckpointWeights
from rivals.base import Answered, Loaded, Stage, installed
from run_files import RunFiles, Which

INSTALL = "pip install llama-cpp-python gguf"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of tokens
TOWER = "tower.gguf"
MARKER = b"<__media__>"


def load_llamacpp(stage: Stage, which: Which, kind: str) -> Loaded:
    """Load llama.cpp with the files of a kind of weights.

    Raises:
        CompExportError: the compressed model; llama-cpp-python or gguf is not installed.
    """
    if which == "compressed":
        raise CompExportError(
            "not measured: llama.cpp's graph of a Llama has one width for all of its layers, and drops no "
            "tokens"
        )
    with installed(INSTALL):
        import llama_cpp
    text, tower = gguf_files(stage.files, kind)
    model = _Model(text, tower, stage.settings.threads, stage.files, stage.settings.new_tokens)
    before, after = _prompt(stage)

    def answer(image: Image.Image) -> Answered:
        began = perf_counter()
        model.forget()
        model.read(before)
        prepared = model.see(image)
        tokens = [model.read(after)]
        first = perf_counter()
        while len(tokens) < stage.settings.new_tokens:
            tokens.append(model.read(tokens[-1:]))
        ended = perf_counter()
        return Answered(
            prepare_ms=prepared,
            ttft_ms=1e3 * (first - began),
            decode_ms=1e3 * (ended - first),
            prompt_tokens=len(before) + len(after) + stage.files.plan.workload.image_tokens,
            token_ids=tuple(tokens),
        )

    bytes_ = text.stat().st_size + tower.stat().st_size
    return Loaded(answer, {"llama_cpp": llama_cpp.__version__, "bytes": bytes_})


def gguf_files(files: RunFiles, kind: str) -> tuple[Path, Path]:
    """Write the language model with a kind of weights, and the image tower, unless they exist.

    Raises:
        CompExportError: gguf is not installed.
    """
    folder = files.model / "gguf"
    text, tower = folder / f"{kind}.gguf", folder / TOWER
    weights = CheckpointWeights(files.checkpoint())
    config = read_config(files.checkpoint())
    for path, write in ((text, _write_text), (tower, _write_tower)):
        if not path.exists():
            with installed(INSTALL), writing(path) as temporary:
                write(temporary, config, weights, kind)
    return text, tower


class _Model:
    """Both files in memory, with one sequence."""

    def __init__(self, text: Path, tower: Path, threads: int, files: RunFiles, new: int) -> None:
        import llama_cpp
        from llama_cpp import mtmd_cpp

        self._cpp, self._media = llama_cpp, mtmd_cpp
        # A reference, because the libraries hold no reference to it.
        self._quiet = llama_cpp.llama_log_callback(lambda *_said: None)
        for set_log in (mtmd_cpp.mtmd_log_set, mtmd_cpp.mtmd_helper_log_set):
            set_log(self._quiet, None)
        size = files.plan.workload
        places = size.image_tokens + size.text_tokens + new
        self._llama = llama_cpp.Llama(
            str(text),
            n_ctx=places,
            n_batch=places,
            n_ubatch=places,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu, settings.print_timings, settings.n_threads = False, False, threads
        self._eye = mtmd_cpp.mtmd_init_from_file(str(tower).encode(), self._llama.model, settings)
        if self._eye is None:
            raise CompExportError(f"llama.cpp refuses {tower}")
        self._places = places

    def forget(self) -> None:
        """Start a new sequence."""
        self._llama.reset()
        self._llama._ctx.kv_cache_clear()

    def read(self, tokens: list[int]) -> int:
        """Run tokens and return the likeliest next one."""
        self._llama.eval(tokens)
        logits = self._cpp.llama_get_logits(self._llama.ctx)
        return int(np.ctypeslib.as_array(logits, (self._llama.n_vocab(),)).argmax())

    def see(self, image: Image.Image) -> float:
        """Run an image after the sequence so far; return the milliseconds of preprocessing."""
        media, began = self._media, perf_counter()
        pixels = np.ascontiguousarray(image.convert("RGB"))
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = media.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], data)
        chunks = media.mtmd_input_chunks_init()
        text = media.mtmd_input_text(text=MARKER, text_len=len(MARKER), parse_special=True)
        bitmaps = (media.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if media.mtmd_tokenize(self._eye, chunks, ctypes.byref(text), bitmaps, 1):
            raise CompExportError("llama.cpp refuses the image")
        prepared = 1e3 * (perf_counter() - began)
        ended = self._cpp.llama_pos(0)
        for place in range(media.mtmd_input_chunks_size(chunks)):
            chunk = media.mtmd_input_chunks_get(chunks, place)
            arguments = (self._llama.n_tokens, 0, self._places, False, ctypes.byref(ended))
            if media.mtmd_helper_eval_chunk_single(self._eye, self._llama.ctx, chunk, *arguments):
                raise CompExportError("llama.cpp cannot read the image")
            self._llama.n_tokens = ended.value
        media.mtmd_input_chunks_free(chunks)
        media.mtmd_bitmap_free(bitmap)
        return prepared


def _prompt(stage: Stage) -> tuple[list[int], list[int]]:
    """Token ids before and after the image; their values do not change times."""
    tokens = stage.files.plan.workload.text_tokens
    random = np.random.default_rng(stage.files.seed)
    ids = [int(number) for number in random.integers(300, 7000, tokens)]
    return ids[: tokens // 4], ids[tokens // 4 :]


def _write_text(path: Path, config: dict[str, Any], weights: CheckpointWeights, kind: str) -> None:
    from gguf import GGUFWriter

    text = config["text_config"]
    heads, groups = text["num_attention_heads"], text["num_key_value_heads"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_dimension_count(text["hidden_size"] // heads)
    writer.add_vocab_size(text["vocab_size"])
    _write_vocabulary(writer, text["vocab_size"])
    decoder = "model.language_model"
    _add(writer, "token_embd.weight", weights.read(f"{decoder}.embed_tokens.weight"), kind)
    _add(writer, "output.weight", weights.read(LM_HEAD), kind)
    _add(writer, "output_norm.weight", weights.read(f"{decoder}.norm.weight"))
    for layer in range(text["num_hidden_layers"]):
        of = f"{decoder}.layers.{layer}"
        for name, place, turned in (
            ("attn_q", "self_attn.q_proj", heads),
            ("attn_k", "self_attn.k_proj", groups),
            ("attn_v", "self_attn.v_proj", 0),
            ("attn_output", "self_attn.o_proj", 0),
            ("ffn_gate", "mlp.gate_proj", 0),
            ("ffn_up", "mlp.up_proj", 0),
            ("ffn_down", "mlp.down_proj", 0),
        ):
            values = weights.read(f"{of}.{place}.weight")
            values = _pairs(values, turned) if turned else values
            _add(writer, f"blk.{layer}.{name}.weight", values, kind)
        _add(writer, f"blk.{layer}.attn_norm.weight", weights.read(f"{of}.input_layernorm.weight"))
        after = weights.read(f"{of}.post_attention_layernorm.weight")
        _add(writer, f"blk.{layer}.ffn_norm.weight", after)
    _close(writer)


def _write_tower(path: Path, config: dict[str, Any], weights: CheckpointWeights, kind: str) -> None:
    from gguf import GGUFWriter

    del kind  # the same for all kinds of the decoder
    vision = config["vision_config"]
    writer = GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(value=True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(1e-5)
    # It skips the last block of this number, as LLaVA-1.5 does.
    blocks = vision["num_hidden_layers"] + 2 + config["vision_feature_layer"]
    writer.add_vision_block_count(blocks)
    writer.add_vision_image_mean([0.48, 0.46, 0.41])
    writer.add_vision_image_std([0.27, 0.26, 0.28])
    tower = "model.vision_tower"
    _add(writer, "v.class_embd", weights.read(f"{tower}.embeddings.class_embedding"))
    patches = weights.read(f"{tower}.embeddings.patch_embedding.weight")
    _add(writer, "v.patch_embd.weight", patches, "F16")
    places = weights.read(f"{tower}.embeddings.position_embedding.weight")
    _add(writer, "v.position_embd.weight", places)
    names = {"v.pre_ln": f"{tower}.pre_layrnorm"}
    for layer in range(blocks):
        of = f"{tower}.encoder.layers.{layer}"
        names |= {
            f"v.blk.{layer}.{name}": f"{of}.{place}"
            for name, place in (
                ("ln1", "layer_norm1"),
                ("ln2", "layer_norm2"),
                ("attn_q", "self_attn.q_proj"),
                ("attn_k", "self_attn.k_proj"),
                ("attn_v", "self_attn.v_proj"),
                ("attn_out", "self_attn.out_proj"),
                ("ffn_up", "mlp.fc1"),
                ("ffn_down", "mlp.fc2"),
            )
        }
    names |= {f"mm.{2 * n}": f"model.multi_modal_projector.linear_{n + 1}" for n in range(2)}
    for name, place in names.items():
        _add(writer, f"{name}.weight", weights.read(f"{place}.weight"), "F16")
        _add(writer, f"{name}.bias", weights.read(f"{place}.bias"))
    _close(writer)


def _write_vocabulary(writer: Any, size: int) -> None:
    """A vocabulary of placeholder words, of the type that llama.cpp supports best."""
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_]
    kinds = [UNKNOWN, CONTROL, CONTROL, *([BYTE] * 256)]
    more = size - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *(f"▁w{number}" for number in range(more))])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([*kinds, *([NORMAL] * more)])


def _add(writer: Any, name: str, values: NDArray[Any], kind: str = "F32") -> None:
    """Add a tensor; tensors of one axis always in float32, as llama.cpp requires."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = "F32" if values.ndim == 1 else kind
    wanted = GGMLQuantizationType[kind]
    data = quantize(np.ascontiguousarray(values, np.float32), wanted)
    writer.add_tensor(name, data, raw_dtype=None if kind in ("F32", "F16") else wanted)


def _pairs(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows of a projection so that neighbours are rotated together, instead of halves of a head."""
    rows, width = values.shape
    return values.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

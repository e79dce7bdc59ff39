"""Configurations and files of real checkpoints: read as in transformers, or refused."""

import contextlib
import copy
import json
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig

from comp.checkpoints.config_checks import CLIP_FIELDS, checked_config
from comp.checkpoints.encoder_shape import EncoderShape
from comp.checkpoints.llava_tensors import check_llava
from comp.checkpoints.locate import read_config, resolve_model
from comp.checkpoints.weight_files import stored_tensors, weight_files
from comp.cli import cli
from comp.errors import CompExportError
from comp.plan import PruningPlan, Workload
from export.configs.blip import blip_of
from export.configs.clip import clip_of
from export.configs.llava import llava_of

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 123\n"
MODELS = Path(str(files("comp"))) / "models"
READERS = {"tiny-llava": llava_of, "tiny-clip": clip_of, "tiny-blip-vqa": blip_of}


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A copy of the embedded LLaVA, to be damaged."""
    target = tmp_path / "model"
    target.mkdir()
    for path in (MODELS / "tiny-llava").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def change(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_duplicate_fields_of_old_clips_are_merged_as_in_transformers(data: st.DataObject) -> None:
    config: dict[str, object] = {"model_type": "clip", "architectures": ["CLIPModel"]}
    choices = {"text_config": [64, 128, 512], "vision_config": [96, 192, 768]}
    for part, widths in choices.items():
        fields = {
            "hidden_size": st.sampled_from(widths),
            "num_hidden_layers": st.integers(1, 4),
            "hidden_act": st.sampled_from(["gelu", "quick_gelu"]),
            "layer_norm_eps": st.sampled_from([1e-5, 1e-6]),
        }
        if part == "text_config":
            fields |= {"eos_token_id": st.sampled_from([2, 7]), "vocab_size": st.just(50)}
        some = st.fixed_dictionaries({}, optional=fields)
        config[part] = data.draw(some)
        if data.draw(st.booleans()):
            config[f"{part}_dict"] = data.draw(some)
    expected = CLIPConfig(**copy.deepcopy(config))
    result = clip_of(checked_config(config, "config.json"), "config.json")
    text, vision = expected.text_config, expected.vision_config
    assert result.sizes.text.hidden_size == text.hidden_size
    assert result.sizes.text.vocab_size == text.vocab_size
    assert len(result.sizes.text.blocks) == text.num_hidden_layers
    assert len(result.sizes.vision.blocks) == vision.num_hidden_layers
    assert result.sizes.vision.hidden_size == vision.hidden_size
    assert (result.text.act, result.vision.act) == (text.hidden_act, vision.hidden_act)
    assert result.text.layer_norm_eps == text.layer_norm_eps
    assert result.vision.layer_norm_eps == vision.layer_norm_eps
    assert result.end_of_text == ("largest" if text.eos_token_id == 2 else text.eos_token_id)
    assert EncoderShape.from_config(checked_config(config, "here")) == result.sizes


def test_merged_fields_have_the_defaults_of_transformers() -> None:
    whole = CLIPConfig()
    for part, fields in CLIP_FIELDS.items():
        assert fields.items() <= getattr(whole, part).to_dict().items()


ORIGINALS = {
    "llava, old": (
        {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "hidden_size": 64},
        "convert_llava_weights_to_hf.py",
    ),
    "llava, new": (
        {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama"},
        "convert_llava_weights_to_hf.py",
    ),
    "llava, without a name": (
        {"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
        "convert_llava_weights_to_hf.py",
    ),
    "open_clip": ({"model_cfg": {"embed_dim": 512}, "preprocess_cfg": {}}, "of open_clip"),
    "blip": (
        {"architectures": ["BertModel"], "model_type": "bert", "encoder_width": 768},
        "convert_blip_original_pytorch_to_hf.py",
    ),
    "no parts": ({"model_type": "llava", "hidden_size": 64}, "has no text_config"),
    "one part": ({"model_type": "clip", "text_config": {}}, "has no vision_config"),
    "a part that is null": (
        {"model_type": "blip", "vision_config": None, "text_config": {}},
        "has no vision_config",
    ),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_command_names_the_format_before_any_work(tmp_path: Path, name: str) -> None:
    config, message = ORIGINALS[name]
    model = tmp_path / "original"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    plan = tmp_path / "plan.json"
    PruningPlan(
        family="llava",
        model="a",
        method="own",
        rate=0.5,
        workload=Workload(image_tokens=1, text_tokens=1),
        macs_dense=2,
        macs=1,
        blocks=(),
    ).save(plan)
    for words in (
        ("flops", "--model", model),
        ("prune", "--model", model, "--rate", "0.5", "--out", tmp_path / "run"),
        ("profile", "--model", model, "--out", tmp_path / "table.json"),
        ("cut", "--model", model, "--plan", plan, "--out", tmp_path / "run"),
    ):
        done = CliRunner().invoke(cli, [str(word) for word in words])
        assert isinstance(done.exception, CompExportError), (words[0], done.output, done.exception)
        assert message in str(done.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("open_clip_config.json", "of open_clip"),
        ("ViT-B-32.pt", "convert_clip_original_pytorch_to_hf.py"),
        ("model_base_capfilt_large.pth", "convert_blip_original_pytorch_to_hf.py"),
        ("adapter_config.json", "of a PEFT adapter, which holds no model; merge it"),
        ("readme.md", "holds no config.json: pass the directory of a Hugging Face checkpoint"),
    ],
)
def test_directories_of_other_formats_are_named(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).write_text("")
    if file == "adapter_config.json":  # as PEFT's trainer leaves it
        (tmp_path / "optimizer.pt").write_text("")
    with pytest.raises(CompExportError) as refused:
        resolve_model(str(tmp_path))
    assert message in str(refused.value)


@pytest.mark.parametrize("owner", [None, "text_config", "vision_config"])
@pytest.mark.parametrize("method", ["bitsandbytes", "awq", "gptq", "compressed-tensors", "fp8"])
def test_quantised_configurations_are_refused(llava: Path, owner: str | None, method: str) -> None:
    quantised = {"quantization_config": {"quant_method": method, "bits": 4}}
    config = json.loads((llava / "config.json").read_text())
    change(llava, **(quantised if owner is None else {owner: config[owner] | quantised}))
    with pytest.raises(CompExportError) as refused:
        read_config(llava)
    assert method in str(refused.value)
    assert "pass the unquantised checkpoint" in str(refused.value)
    change(llava, **{"quantization_config": None} | ({owner: config[owner]} if owner else {}))
    assert read_config(llava)["model_type"] == "llava"


@pytest.mark.parametrize(
    "file", ["model.safetensors", "tokenizer.json", "config.json", "processor_config.json"]
)
def test_pointers_of_git_lfs_are_named(llava: Path, file: str) -> None:
    (llava / file).write_text(POINTER)
    for read in (
        read_config,
        lambda path: CliRunner().invoke(cli, ["flops", "--model", str(path)]),
    ):
        if read is read_config:
            with pytest.raises(CompExportError, match="is a Git LFS pointer, not the file itself"):
                read(llava)
        else:
            assert "Git LFS pointer" in str(read(llava).exception)


def test_links_outside_the_directory_lead_only_to_the_hub_cache(
    llava: Path, tmp_path: Path
) -> None:
    weights = llava / "model.safetensors"
    blobs = tmp_path / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    weights.rename(blobs / "1f")
    weights.symlink_to(os.path.relpath(blobs / "1f", llava))
    assert read_config(llava)["model_type"] == "llava"
    assert stored_tensors(llava)
    (blobs / "1f").rename(tmp_path / "elsewhere")
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere")
    for read in (read_config, stored_tensors):
        with pytest.raises(CompExportError, match="is a link that leads out of the checkpoint"):
            read(llava)
    weights.unlink()
    weights.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CompExportError, match="No such file"):
        read_config(llava)
    weights.unlink()
    os.mkfifo(weights)
    for read in (read_config, weight_files):
        with pytest.raises(CompExportError, match="is not a regular file"):
            read(llava)
    linked = tmp_path / "link"
    linked.symlink_to(MODELS / "tiny-llava", target_is_directory=True)
    assert read_config(linked)["model_type"] == "llava"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "holds a list, not an object"),
        ("{}", "weight_map is not an object with tensors"),
        ('{"weight_map": []}', "weight_map is not an object with tensors"),
        ('{"weight_map": {"a": 3}}', "weight_map.a is 3, not the name of a file"),
        ('{"weight_map": {"a": {"b": "c"}}}', "weight_map.a is"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "which leads out of"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "which leads out of"),
        ('{"weight_map": {"a": ".."}}', "which leads out of"),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "is missing"),
        ("[" * 500 + "]" * 500, "nested deeper than"),
    ],
)
def test_damaged_indexes_are_refused_by_name(llava: Path, index: str, message: str) -> None:
    (llava / "model.safetensors").rename(llava / "model-00001.safetensors")
    (llava / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CompExportError) as refused:
        weight_files(llava)
    assert message in str(refused.value)
    assert "model" in str(refused.value)


def test_missing_or_pickled_weights_are_named(llava: Path) -> None:
    (llava / "model.safetensors").rename(llava / "model.fp16.safetensors")
    with pytest.raises(CompExportError, match=r"model\.fp16\.safetensors is neither"):
        weight_files(llava)
    (llava / "model.fp16.safetensors").rename(llava / "pytorch_model.bin")
    with pytest.raises(
        CompExportError, match=r"pytorch_model\.bin, a pickle, which is never loaded"
    ):
        weight_files(llava)


def test_integer_weights_are_refused_only_where_they_are_read(llava: Path) -> None:
    config = read_config(llava)
    weights = load_file(llava / "model.safetensors")
    odd = {"optimizer.step": np.array([3]), "language_model.rotary.inv_freq": np.zeros(3, np.int8)}
    save_file(weights | odd, llava / "model.safetensors")
    check_llava(llava, config)
    name = next(each for each in weights if each.endswith("layers.0.mlp.up_proj.weight"))
    packed = weights | {name: weights[name].astype(np.int8)}
    save_file(packed, llava / "model.safetensors")
    with pytest.raises(CompExportError, match=r"up_proj\.weight is I8: .*unquantised"):
        check_llava(llava, config)
    save_file(weights | {name: weights[name].astype(np.float64)}, llava / "model.safetensors")
    with pytest.raises(CompExportError, match=r"is F64: .*save the model in float32"):
        check_llava(llava, config)
    gptq = {each: array for each, array in weights.items() if each != name}
    gptq[name.replace(".weight", ".qweight")] = np.zeros((2, 2), np.int32)
    save_file(gptq, llava / "model.safetensors")
    with pytest.raises(CompExportError, match="its weights are quantised"):
        check_llava(llava, config)
    save_file(weights | {name: weights[name][:3]}, llava / "model.safetensors")
    with pytest.raises(CompExportError, match=r"and config\.json says"):
        check_llava(llava, config)


def places(value: object, place: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Every place in a JSON value."""
    result = [place]
    inside = value.items() if isinstance(value, dict) else ()
    for key, each in inside:
        result += places(each, (*place, key))
    return result


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(
        [10**9, 10**40, -(10**40), 0.5, 1e300, "", "x", "7", [], [[]], [1, 2], {}, {"a": 1}]
    ),
)


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_fields_are_refused_without_another_error(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    config = json.loads((MODELS / name / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(config)[1:]))
        owner = config
        for key in place[:-1]:
            owner = owner[key] if isinstance(owner.get(key), dict) else {}
        owner[place[-1]] = data.draw(JUNK)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(CompExportError):  # the one error that may be raised
        result = read_config(tmp_path)
        READERS[name](result, "config.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pruning": {"drops": [{"after_layer": 0}]}}, "pruning.drops.0.after_layer"),
        (
            {"pruning": {"vision": {"num_attention_heads": [0]}}},
            "pruning.vision.num_attention_heads.0",
        ),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"vision_feature_layer": "last"}, "vision_feature_layer"),
        ({"architectures": "LlavaForConditionalGeneration"}, "architectures"),
    ],
)
def test_the_wrong_field_is_named(llava: Path, fields: dict[str, object], message: str) -> None:
    change(llava, **fields)
    with pytest.raises(CompExportError) as refused:
        read_config(llava)
    assert message in str(refused.value)
    assert str(llava / "config.json") in str(refused.value)

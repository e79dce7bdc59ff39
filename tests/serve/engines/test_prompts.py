"""Prompts of the engine and of training against transformers' processor: templates, images, words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPImageProcessorPil, LlavaProcessor

from comp.errors import CompExportError
from comp.tiny_models.tiny_tokenizer import build_tokenizer
from export.artifact.llava_manifest import ChatTemplate
from export.artifact.manifest import TextProcessing
from serve.engines.llava_prompt import PromptEncoder
from tests.export.manifests import artifact_manifest
from tests.serve.random_llava import IMAGE_TOKENS, PATCH, SIDE, noise

EACH = "{% for m in messages %}{% for c in m.content %}"
END = "{% endfor %}{% endfor %}"
TEMPLATES = {
    "own line": EACH + "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}" + END,
    "line break of the text": EACH
    + "{% if c.type == 'image' %}<image>{% else %}{{ '\\n' + c.text }}{% endif %}"
    + END
    + " ASSISTANT:",
    "words trimmed": EACH
    + "{% if c.type == 'image' %} <image> {% else %}{{ c.text | trim | upper }}{% endif %}"
    + END,
    "images behind": "{% for m in messages %}{% for c in m.content if c.type == 'text' %}{{ c.text }}"
    "{% endfor %}{% for c in m.content if c.type == 'image' %}<image>{% endfor %}{% endfor %}",
    "BOS": "{{ bos_token }}" + EACH + "{{ image_token if c.type == 'image' else c.text }}" + END,
    "EOS": EACH + "{{ '<image>' if c.type == 'image' else c.text }}" + END + "{{ eos_token }}",
}
PROMPTS = ("what is it?", "  \n where?\t ", "Zürich {prompt} <b> </s> ☕", "<s>yes", "a" * 60)


@pytest.fixture(scope="module")
def processor():
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return LlavaProcessor(
        images,
        build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.fixture(scope="module")
def encoder(processor, tmp_path_factory):
    """The engine's prompt encoder, for a template or for an older artifact without one."""
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    processor.tokenizer.backend_tokenizer.save(str(path))

    def make(template=None, **changes):
        result = artifact_manifest(image_tokens=IMAGE_TOKENS, positions=1024)
        if template is not None:
            tokens = dict(processor.tokenizer.special_tokens_map)
            changes["chat_template"] = ChatTemplate(source=template, tokens=tokens)
        image = processor.tokenizer.convert_tokens_to_ids("<image>")
        tokens = result.tokens.model_copy(update={"image_token_id": image})
        return PromptEncoder(result.model_copy(update=changes | {"tokens": tokens}), path)

    return make


def of_processor(processor, template, prompt, images):
    content = [{"type": "image", "image": noise(seed)} for seed in range(images)]
    turn = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
    result = processor.apply_chat_template(
        turn, template, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return np.asarray(result["input_ids"][0]).tolist()


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_prompts_are_those_of_the_processor(processor, encoder, name, images):
    ours = encoder(TEMPLATES[name])
    for prompt in PROMPTS:
        expected = of_processor(processor, TEMPLATES[name], prompt, images)
        assert ours.encode(prompt, images).input_ids.tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.text("ab fox.?\n\t</s>{}%☕É", max_size=20).filter(str.strip),
    images=st.integers(0, 2),
    name=st.sampled_from(sorted(TEMPLATES)),
)
def test_any_prompt_is_that_of_the_processor(processor, encoder, prompt, images, name):
    expected = of_processor(processor, TEMPLATES[name], prompt, images)
    ours = encoder(TEMPLATES[name]).encode(prompt, images)
    assert ours.input_ids.tolist() == expected
    assert sorted([*ours.vision, *ours.text]) == list(range(ours.length))


def test_image_tokens_in_text_are_handled_as_in_transformers(processor, encoder):
    template = TEMPLATES["own line"]
    ours = encoder(template)
    prompt = "first <image> then <image>?"
    with pytest.raises(ValueError, match="number of images"):  # transformers refuses them too
        of_processor(processor, template, prompt, 1)
    for images in (0, 1, 3):
        with pytest.raises(CompExportError, match=f"2 <image> but there are {images} images"):
            ours.encode(prompt, images)
    # As many as the images: then the text places them, and the template adds none.
    turn = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(turn, template, add_generation_prompt=True)
    expected = processor(text=text, images=[noise(0), noise(1)])["input_ids"][0]
    assert ours.encode(prompt, 2).input_ids.tolist() == list(expected)


def test_templates_with_another_number_of_images_are_refused(encoder):
    ours = encoder("<image>{{ messages[0].content[-1].text }}")
    assert ours.encode("what?", 1).vision.size == IMAGE_TOKENS
    for images in (0, 2):
        with pytest.raises(CompExportError, match=f"writes 1 <image> for {images} images"):
            ours.encode("what?", images)


def test_split_special_tokens_are_refused(encoder):
    ours = encoder(TEMPLATES["own line"], text_processing=TextProcessing(split_special_tokens=True))
    with pytest.raises(CompExportError, match="does not keep <image> whole"):
        ours.encode("what?", 1)


def test_prompts_other_than_text_are_refused(encoder):
    ours = encoder(TEMPLATES["own line"])
    for prompt, words in (
        ("\n ", "the prompt is empty"),
        ("what\udc80?", "half of a surrogate pair"),
        ("a" * 10**6, "has 1000000 characters"),
        ("fox " * 2000, "model has 1024 positions"),
    ):
        with pytest.raises(CompExportError, match=words):
            ours.encode(prompt, 1)


def test_templates_with_a_lone_surrogate_are_refused(encoder):
    ours = encoder("{{ '\\ud83d' }}<image>{{ messages[0].content[-1].text }}")
    with pytest.raises(CompExportError, match="in its template holds half"):
        ours.encode("what?", 1)


def test_older_artifacts_without_a_template_answer_as_before(encoder):
    ours = encoder(prompt_template="USER: <image>\n{prompt} ASSISTANT:")
    assert ours.render("what?", 1) == "USER: <image>\nwhat? ASSISTANT:"
    assert ours.render("what?", 2) == "USER: <image>\n<image>\nwhat? ASSISTANT:"
    assert ours.render("what?", 0) == "USER: what? ASSISTANT:"
    ids = ours.encode("what?", 1).input_ids.tolist()
    assert ids[0] == 1
    assert ids[1] != 1
    for changes in ({"prompt_template": "no place"}, {"prompt_template": None}):
        with pytest.raises(CompExportError, match=r"has no \{prompt\}"):
            encoder(**changes)

"""Chat templates: rendered and chosen as in transformers, within limits."""

import json
import os
import resource
from multiprocessing import get_context
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from comp.checkpoints import template_process
from comp.checkpoints.chat_template import (
    LLAVA_TEMPLATE,
    check_template,
    find_chat_template,
    render,
    user_turn,
)
from comp.checkpoints.template_process import Rendering, TemplateFailed, TemplateProcess
from comp.checkpoints.template_worker import _limit_memory
from comp.errors import CompExportError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
EACH = "{% for m in messages %}{% for c in m.content %}"
END = "{% endfor %}{% endfor %}"
TEMPLATES = {
    "llava": LLAVA_TEMPLATE,
    "generation": "{% for m in messages %}{% generation %}{% set a = m.role %}{{ a }}: {% endgeneration %}"
    "{{ a is defined }}{% for c in m.content %}{{ c.type }} {% endfor %}{% endfor %}",
    "generation inside a loop": EACH
    + "{%- generation -%} {{ loop.index }} {{ c.type | upper }} {%- endgeneration -%}"
    + END,
    "trimmed words": EACH + "{{ c.text | trim if c.type == 'text' else image_token }}" + END,
    "line breaks": EACH + "{{ '<image>' if c.type == 'image' else '\n' + c.text }}" + END,
    "blocks on lines": "{% for m in messages %}\n    {% if m.role == 'user' %}\n  U: {{ m.content | length }}"
    "\n    {% endif %}\n{% endfor %}\nA:\n",
    "loop controls": EACH
    + "{% if c.type == 'image' %}{% continue %}{% endif %}{{ c.text }}{% break %}"
    + END,
    "tojson": "{{ messages | tojson }}|{{ messages[0].content | tojson(indent=2) }}|"
    "{{ {'b': 1, 'a': '<ü>'} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "date": "{{ strftime_now('%Y')[:2] }}",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}",
    "given": "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}"
    "{{ messages is iterable }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ dict(a=1).a }}{{ dict.fromkeys('ab') }}",
    "macro": "{% macro say(who, words) %}{{ who | title }}: {{ words }}{% endmacro %}"
    "{{ say(messages[0].role, messages[0].content[-1].text) }}{{ caller is defined }}",
    "reversed, sliced, joined": "{{ messages[0].content[::-1] | map(attribute='type') | join('+') }}"
    "{{ messages[0]['content'] | selectattr('type', 'equalto', 'image') | list | length }}",
    "format": "{{ '{0.__class__}'.format('') }}{{ '{:>5}'.format('a') }}",
    "strings": "{{ messages[0].content[-1].text.split(' ')[0].strip() ~ '!' }}{{ '%s' % 'x' }}",
    "system": "{% if messages[0].role != 'system' %}You look.\n{% endif %}{{ messages[0].content[-1].text }}",
}
REFUSED = {
    "raise": "{{ raise_exception('only one image') }}",
    "undefined": "{{ nothing.at.all }}",
    "dunder": "{{ ''.__class__.__mro__ }}",
    "mutation": "{{ messages.append(1) }}",
    "namespace": "{% set ns = namespace(_hidden=1) %}",
    "syntax": "{% for %}",
    "type": "{{ 1 + 'a' }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
}


def of_transformers(source, messages):
    result, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **TOKENS
    )
    return result[0]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_templates_render_as_in_transformers(name, images):
    messages = user_turn("  What is <b>it</b> & 'so' {{ on }}?\n", images)
    mine = render(TEMPLATES[name], TOKENS, messages, "it")
    assert mine == of_transformers(TEMPLATES[name], messages)


@settings(max_examples=60, deadline=None)
@given(
    words=st.text(max_size=40), images=st.integers(0, 3), name=st.sampled_from(sorted(TEMPLATES))
)
def test_any_text_renders_as_in_transformers(words, images, name):
    messages = user_turn(words, images)
    try:
        expected = of_transformers(TEMPLATES[name], messages)
    except Exception:
        with pytest.raises(CompExportError):
            render(TEMPLATES[name], TOKENS, messages, "it")
    else:
        assert render(TEMPLATES[name], TOKENS, messages, "it") == expected


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_transformers_refuses_are_refused(name):
    messages = user_turn("what?", 1)
    with pytest.raises(Exception):  # noqa: B017, PT011, whatever kind it is
        of_transformers(REFUSED[name], messages)
    with pytest.raises(CompExportError, match="the chat template of my-llava"):
        render(REFUSED[name], TOKENS, messages, "my-llava")


def test_message_raised_by_a_template_is_shown():
    with pytest.raises(CompExportError, match="only one image"):
        render(REFUSED["raise"], TOKENS, user_turn("what?", 2), "it")


HOSTILE = {
    "time": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "seconds",
    ),
    "one long operation": ("{{ (2 ** (2 ** 25)) ** 40 > 1 }}", "seconds"),
    "memory": ("{{ 'a' * 10 ** 10 }}", "memory"),
    "doubled": (
        "{% set n = namespace(a='aa') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
        "memory",
    ),
    "length": ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "characters"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name):
    source, words = HOSTILE[name]
    process = TemplateProcess(seconds=0.5)
    try:
        with pytest.raises(TemplateFailed, match=words):
            process.render(Rendering(source, {}, user_turn("what?", 1)))
        fair = Rendering(LLAVA_TEMPLATE, TOKENS, user_turn("what?", 1))
        assert process.render(fair) == "USER: <image>\nwhat? ASSISTANT:"
    finally:
        process.close()


def test_an_interrupted_request_leaves_no_answer(monkeypatch):
    process = TemplateProcess()

    def rendered(words):
        return process.render(Rendering(LLAVA_TEMPLATE, TOKENS, user_turn(words, 0)))

    exchange = template_process._exchange

    def interrupted(running, line, answered=True):
        exchange(running, line, answered=False)
        raise KeyboardInterrupt

    try:
        assert rendered("first") == "USER: first ASSISTANT:"
        with monkeypatch.context() as patched:
            patched.setattr(template_process, "_exchange", interrupted)
            with pytest.raises(KeyboardInterrupt):
                rendered("second")
        assert rendered("third") == "USER: third ASSISTANT:"
        process._process.kill()  # as the kernel does when memory is low
        process._process.wait()
        assert rendered("fourth") == "USER: fourth ASSISTANT:"
    finally:
        process.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_renders_in_its_own_process():
    turn = user_turn("what?", 0)
    first = render(LLAVA_TEMPLATE, TOKENS, turn, "it")
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(render, (LLAVA_TEMPLATE, TOKENS, turn, "it")) == first
    assert render(LLAVA_TEMPLATE, TOKENS, turn, "it") == first


def test_threads_share_the_process():
    result = {}

    def ask(number):
        for _ in range(5):
            turn = user_turn(f"number {number}?", 1)
            result.setdefault(number, set()).add(render(LLAVA_TEMPLATE, TOKENS, turn, "it"))

    threads = [Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert result == {n: {f"USER: <image>\nnumber {n}? ASSISTANT:"} for n in range(8)}


def test_templates_that_drop_image_or_text_are_refused():
    check_template(LLAVA_TEMPLATE, TOKENS, "<image>", "it")
    check_template(TEMPLATES["trimmed words"], TOKENS, "<image>", "it")
    for source, words in (
        ("{{ messages[0].content[-1].text }}", "<image> once"),
        ("<image> <image> {{ messages[0].content[-1].text }}", "<image> once"),
        ("<image> and nothing else", "the words"),
    ):
        with pytest.raises(CompExportError, match=words):
            check_template(source, TOKENS, "<image>", "it")


def written(directory, **files):
    """Write template files by their short names; each template renders its own name."""
    for name in files:
        if name == "jinja":
            (directory / "chat_template.jinja").write_text("jinja")
        elif name == "more":
            (directory / "additional_chat_templates").mkdir()
            for each in files[name]:
                path = directory / "additional_chat_templates" / f"{each}.jinja"
                path.write_text(f"more {each}")
        else:
            path = (
                directory
                / {
                    "legacy": "chat_template.json",
                    "processor": "processor_config.json",
                    "tokenizer": "tokenizer_config.json",
                }[name]
            )
            path.write_text(json.dumps({"chat_template": files[name]}))
    return directory


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"jinja": 1}, "jinja"),
        ({"legacy": "legacy"}, "legacy"),
        ({"legacy": "legacy", "jinja": 1}, "legacy"),
        ({"processor": "processor", "legacy": "legacy", "jinja": 1}, "processor"),
        ({"processor": {"default": "of several"}}, "of several"),
        ({"more": ["default", "tools"]}, "more default"),
        ({"more": ["tools"], "jinja": 1}, "jinja"),
        ({"jinja": 1, "tokenizer": "tokenizer"}, "jinja"),
        ({"tokenizer": "tokenizer"}, "tokenizer"),
        ({"tokenizer": NAMED}, "named"),
    ],
)
def test_the_template_is_the_processors(tmp_path, files, expected):
    written(tmp_path, **files)
    assert find_chat_template(tmp_path) == expected
    theirs = of_processor(tmp_path)
    if "tokenizer" in files and len(files) == 1:
        assert theirs is None  # there it is the tokenizer's
    else:
        assert theirs == expected


def of_processor(directory):
    """Return templates as ``AutoProcessor`` reads them."""
    from transformers import LlavaProcessor

    result, _ = LlavaProcessor.get_processor_dict(directory)
    template = result.get("chat_template")
    return template["default"] if isinstance(template, dict) else template


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"more": ["tools", "rag"]}, "none named default"),
        ({"tokenizer": NAMED[:1]}, "none named default"),
        ({"legacy": "legacy", "more": ["tools"]}, "contradict"),
        ({"processor": 7}, "no text"),
    ],
)
def test_unselectable_templates_are_refused(tmp_path, files, words):
    with pytest.raises(CompExportError, match=words):
        find_chat_template(written(tmp_path, **files))


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_templates_render_where_the_system_has_no_memory_limit(monkeypatch, error):
    def refuse(kind, limits):
        raise error

    monkeypatch.setattr(resource, "setrlimit", refuse)
    _limit_memory(2**29)


def test_an_existing_memory_limit_is_not_raised(monkeypatch):
    result = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**27, 2**28))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: result.append(limits))
    _limit_memory(2**29)
    assert result == [(2**28, 2**28)]

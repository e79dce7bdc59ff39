import json
import os
import subprocess
import sys

import click
import pytest

from comp import cli as cli_module
from comp.cli import VERBS, Verb, cli, main
from comp.commands.options import CommonOptions, common_options, run_argument
from comp.commands.prune import SECTIONS
from comp.commands.sections import GroupedCommand
from comp.errors import CompExportError
from comp.utils.option_fields import OTHER_OPTIONS

HEAVY = ("torch", "transformers", "numpy", "onnx", "onnxruntime", "matplotlib", "rich", "gradio")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from comp.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
    for name, verb in VERBS.items():
        assert f"  {name} " in done.stdout
        assert verb.help in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_command_does_not_import_torch(verb: str) -> None:
    code = (
        "import sys\n"
        "from comp.cli import main\n"
        f"try:\n    main([{verb!r}, '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert f"Usage: comp-export {verb}" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_takes_the_shared_options(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    if isinstance(command, click.Group):
        assert command.commands
        leaves = list(command.commands.values())
    else:
        assert command is not None
        leaves = [command]
    for leaf in leaves:
        names = {name for param in leaf.params for name in param.opts}
        assert {"--device", "--seed", "--json", "--debug"} <= names


def test_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "comp.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("comp-export, version ")


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(["nothing"]) == 2
    assert "No such command 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["prun"], "Did you mean 'prune'?"),
        (["inspect", "--figurs"], "'--figures'"),
        (["prune", "--rate", "0.5", "--method", "fastw"], "did you mean 'fastv'?"),
        (["flops", "--model", "tiny-lava"], "did you mean 'tiny-llava'?"),
    ],
)
def test_unknown_names_suggest_the_nearest(
    capsys: pytest.CaptureFixture[str], words: list[str], suggested: str
) -> None:
    assert leave(words) in (1, 2)
    assert suggested in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_described(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    leaves = command.commands.values() if isinstance(command, click.Group) else [command]
    for param in (param for leaf in leaves for param in leaf.params):
        assert not isinstance(param, click.Option) or param.help, param.name


def test_help_of_prune_is_in_groups_and_ends_with_examples_that_are_accepted() -> None:
    command = cli.get_command(click.Context(cli), "prune")
    assert isinstance(command, GroupedCommand)
    text = command.get_help(click.Context(command, info_name="prune", parent=click.Context(cli)))
    titles = [group.title for group in (*SECTIONS, OTHER_OPTIONS)]
    places = [text.index(f"\n{title}:\n") for title in (*titles, "Examples")]
    assert places == sorted(places)
    assert text.index("--no-cas") > text.index("\nExperimental:\n")
    for words, _ in command.examples:
        verb, *rest = words.split()
        assert verb == "prune"
        assert words in text
        command.make_context("prune", rest)


def leave(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Put a command that raises in place of ``models`` and ``prune``."""

    def install(error: BaseException) -> None:
        @click.command()
        @common_options
        def command(options: CommonOptions) -> None:
            raise error

        monkeypatch.setattr(cli_module.LazyGroup, "get_command", lambda *_: command)

    return install


def test_expected_failure_is_one_line(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(CompExportError("no run at x:\nmake one"))
    assert leave(["models"]) == 1
    assert capsys.readouterr() == ("", "Error: no run at x: make one\n")


def test_unexpected_failure_is_one_line_with_a_hint(
    failing, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(RuntimeError("boom"))
    assert leave(["models"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: RuntimeError: boom")
    assert "--debug" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("error", [CompExportError("x"), RuntimeError("x")])
def test_debug_shows_the_traceback(failing, error: Exception) -> None:
    failing(error)
    with pytest.raises(type(error)):
        main(["models", "--debug"])


def test_missing_package_names_the_extra(failing, capsys: pytest.CaptureFixture[str]) -> None:
    failing(ModuleNotFoundError("No module named 'gradio'", name="gradio.blocks"))
    assert leave(["demo"]) == 1
    assert "[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "resumes"), [("prune", True), ("models", False)])
def test_interrupt_exits_in_one_line(
    failing, capsys: pytest.CaptureFixture[str], verb: str, resumes: bool
) -> None:
    failing(KeyboardInterrupt())
    assert leave([verb]) == 130
    message = capsys.readouterr().err
    assert "interrupted" in message
    assert ("--resume" in message) == resumes


def test_an_entry_point_that_is_not_a_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "models", Verb("comp.commands.options:LATEST_RUN", "help"))
    with pytest.raises(TypeError, match="not a click command"):
        cli.get_command(click.Context(cli), "models")


def test_options_reach_the_command() -> None:
    seen = []

    @click.command()
    @run_argument
    @common_options
    def command(run, options: CommonOptions) -> None:
        seen.append((str(run), options))

    command.main([], standalone_mode=False)
    command.main(
        ["a", "--device", "cpu", "--seed", "3", "--json", "--debug"], standalone_mode=False
    )
    assert seen == [
        ("runs/latest", CommonOptions("auto", 0, False, False)),
        ("a", CommonOptions("cpu", 3, True, True)),
    ]


def test_stdout_holds_only_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "comp.cli", "flops", "--model", "llava-7b", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(json.loads(done.stdout)) >= {"macs", "params", "parts"}


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch, given, expected):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert leave(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == expected

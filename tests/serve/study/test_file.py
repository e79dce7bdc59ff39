"""Study files: allowed contents, and errors."""

import json

import pytest

from comp.errors import CompExportError
from comp.pipeline.options import PruneOptions
from serve.study.grid import cells_of, reference_of, removes_of, rows_of, settings_of
from serve.study.loading import load_study
from serve.study.schema import BUDGET, OWNED, PruneTable, Variant, prune_options

HEAD = 'model = "tiny-llava"\nrates = [0.7, 0.8]\nseeds = [0, 1]\nmethods = ["comp"]\n'


@pytest.fixture
def read(tmp_path):
    """Return a function that reads a study from this text."""

    def reading(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return load_study(path)

    return reading


def test_the_grid_has_a_whole_table_with_the_first_seed_before_the_second(read):
    study = read(HEAD + '[variants.tokens]\nmodes = "vt,lt"\n[variants.no-cip]\nno_cip = true\n')
    names = [cell.name for cell in cells_of(study)]
    assert names[:6] == [
        "comp-0.7-seed0",
        "tokens-0.7-seed0",
        "no-cip-0.7-seed0",
        "comp-0.8-seed0",
        "tokens-0.8-seed0",
        "no-cip-0.8-seed0",
    ]
    assert len(set(names)) == 3 * 2 * 2
    assert reference_of(study) == "comp"


@pytest.mark.parametrize(
    ("prune", "variant", "removes"),
    [
        ("", "", "both"),
        ("", 'modes = "vt,lt"', "tokens"),
        ("", 'modes = "vision_tokens"', "tokens"),
        ("", 'modes = "lp"', "parameters"),
        ("", 'method = "pdrop"', "tokens"),
        ('[prune]\nmodes = "vt,lp"\n', 'method = "wanda"', "parameters"),
        ('[prune]\nmodes = "lp,vp"\n', "", "parameters"),
        ('[prune]\nmodes = "lp,vp"\n', 'modes = "vt"', "tokens"),
        ('[prune]\nmodes = "lp,vp"\n', 'modes = "vt,lp"', "both"),
    ],
)
def test_modes_decide_what_a_row_removes(read, prune, variant, removes):
    study = read(f"{HEAD}{prune}[variants.row]\n{variant}\n")
    row = next(row for row in rows_of(study) if row.name == "row")
    assert removes_of(study, row) == removes


def test_every_option_of_prune_is_reserved_or_settable(read):
    known = set(PruneOptions.model_fields)
    assert known >= OWNED | BUDGET
    assert set(PruneTable.model_fields) == known - OWNED == set(prune_options())
    assert set(Variant.model_fields) - {"method"} == known - OWNED - BUDGET


def test_row_settings_override_the_common_ones(read):
    study = read(HEAD + "[prune]\nstages = 4\nhistory = 0.3\n[variants.flat]\nhistory = 0.0\n")
    by_name = {cell.name: settings_of(study, cell) for cell in cells_of(study)}
    assert by_name["comp-0.8-seed1"]["prune"] == {"stages": 4, "history": 0.3}
    assert by_name["flat-0.8-seed1"]["prune"] == {"stages": 4, "history": 0.0}
    assert by_name["flat-0.8-seed1"]["rate"] == 0.8
    assert by_name["flat-0.8-seed1"]["seed"] == 1
    json.dumps(by_name)


WRONG = [
    ("rate = [0.8]\n", r"unknown key 'rate' at the top: did you mean 'rates'\?"),
    (
        "[prune]\nrecover_stepz = 3\n",
        r"'recover_stepz' in \[prune\]: did you mean 'recover_steps'\?",
    ),
    ("[evaluation]\nlimits = 3\n", r"'limits' in \[evaluation\]: did you mean 'limit'\?"),
    ("[bench]\nrepeat = 3\n", r"'repeat' in \[bench\]: did you mean 'repeats'\?"),
    ("[variants.a]\nno_cip_ = true\n", r"'no_cip_' in \[variants.a\]: did you mean 'no_cip'\?"),
    ("[variants.a]\nzzz = true\n", r"'zzz' in \[variants.a\]: choose from method, .*modes"),
    ("[variants.a]\nrecover_steps = 3\n", r"'recover_steps' in \[variants.a\]: .*into \[prune\]"),
    (
        "[variants.a]\nno_cip = 1\n",
        r"no_cip in \[variants.a\] is 1: input should be a valid boolean",
    ),
    (
        "[variants.a]\ndistill_weight = 0.0\n",
        r"distill_weight in \[variants.a\] is 0.0: .*greater than 0",
    ),
    ("[prune]\nstages = 0\n", r"stages in \[prune\] is 0: .*greater than or equal to 1"),
    (
        '[prune]\nrecover = "some"\n',
        r"recover in \[prune\] is 'some': input should be 'auto', 'full'",
    ),
    ("variants = 3\n", r"variants at the top is 3: "),
    ("[variants]\na = 3\n", r"a in \[variants\] is 3: "),
    (
        '[variants.a]\nmethod = "conp"\n',
        r"unknown method 'conp' in \[variants.a\]: did you mean 'comp'",
    ),
    (
        '[variants.a]\nmodes = "vt,xx"\n',
        r"unknown mode 'xx' of llava in \[variants.a\]: choose from vt",
    ),
    (
        '[prune]\nmodes = "vision_token"\n',
        r"'vision_token' of llava in \[prune\]: .*'vision_tokens'",
    ),
    ('[prune]\nmodes = "cp"\n', r"unknown mode 'cross_parameters' of llava in \[prune\]"),
    (
        '[variants.a]\nmethod = "wanda"\nno_cip = true\n',
        r"'no_cip' in \[variants.a\]: it is an option of comp",
    ),
    (
        '[variants.a]\nmethod = "wanda"\nmodes = "vt"\n',
        r"method 'wanda' in \[variants.a\]: .*parameters alone",
    ),
    (
        '[variants.a]\nmethod = "sjp"\nno_reconstruction = true\n',
        r"'no_reconstruction' in \[variants.a\]: it is an option of comp",
    ),
    ("[variants.comp]\nno_cip = true\n", r"variant 'comp' has the name of a method"),
    ("[variants.'a b']\nno_cip = true\n", r"variant 'a b': a name has lower-case letters"),
    ('reference = "cmp"\n', r"unknown reference 'cmp': did you mean 'comp'\?"),
    ('images = "pictures"\n', r"images 'pictures' without data"),
    ('test_data = "some.json"\n', r"test_data 'some.json' without data to train on"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text.strip() for text, _ in WRONG])
def test_errors_name_their_table(read, text, message):
    with pytest.raises(CompExportError, match=rf"mine\.toml: .*{message}"):
        read(HEAD + text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"tiny-llava"', '"tiny-lava"', r"unknown model 'tiny-lava': did you mean 'tiny-llava'\?"),
        ("[0.7, 0.8]", "[0.7, 80]", r"rate 80 is outside \(0, 1\)"),
        ("[0.7, 0.8]", "[]", r"rates at the top is \[\]: .*at least 1"),
        ("[0.7, 0.8]", "[0.8, 0.8]", r"rates has 0.8 twice"),
        ("[0, 1]", "[0, -1]", r"seed -1 is negative"),
        ("[0, 1]", '["one"]', r"seeds at the top is 'one': .*valid integer"),
        ('["comp"]', '["compp"]', r"unknown method 'compp' in methods: did you mean 'comp'\?"),
        ('["comp"]', '["comp", "comp"]', r"methods has 'comp' twice"),
        ('["comp"]', "[]", r"no rows: give methods \(comp"),
        ("seeds = [0, 1]\n", "", r"'seeds' is missing at the top"),
        ("seeds =", "seeds", "mine.toml is not TOML: "),
    ],
)
def test_a_wrong_value_is_named(read, old, new, message):
    assert old in HEAD
    with pytest.raises(CompExportError, match=message):
        read(HEAD.replace(old, new))


def test_data_is_split_by_its_runs_or_tested_on_another_file(read, tmp_path):
    data = tmp_path / "lines.jsonl"
    data.write_text('{"image": "a.png", "question": "what?", "answer": "that"}\n')
    assert read(HEAD + f'data = "{data}"\n').test_data is None
    with pytest.raises(CompExportError, match=r"none\.jsonl"):
        read(HEAD + f'data = "{tmp_path / "none.jsonl"}"\n')
    assert read(HEAD + f'data = "{data}"\ntest_data = "other.jsonl"\n').test_data == "other.jsonl"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CompExportError, match=r"cannot read .*none\.toml: .*docs/studies"):
        load_study(tmp_path / "none.toml")

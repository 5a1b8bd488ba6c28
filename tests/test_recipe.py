"""recipe.py: strict, with the line and the nearest key; what is saved reads back equal."""

from __future__ import annotations

import contextlib
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkstone import recipe
from inkstone.errors import InkstoneError, RecipeError, UnknownNameError
from inkstone.recipe import Recipe


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(recipe.shipped()))
def test_shipped_recipes_load_and_come_back_equal(name: str, tmp_path: Path) -> None:
    loaded = recipe.load(name)
    again = recipe.load(write(tmp_path, loaded.to_toml()))
    assert again.to_dict() == loaded.to_dict()
    assert recipe.shipped()[name]


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'gpt-small'"):
        recipe.load("gpt-smal")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..\\x", "a\0b", "", "..", "."]
)
def test_a_name_cannot_leave_the_recipes(name: str) -> None:
    with pytest.raises(InkstoneError):
        recipe.load(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nlr = 0.1\nwarmup_step = 3\n", r"r\.toml:3: unknown training\.warmup_step\n.*"
         "did you mean 'warmup_steps'"),
        ("[model]\nd_modle = 64\n", r"r\.toml:2: unknown model\.d_modle\n.*did you mean 'd_model'"),
        ("[trainin]\n", r"r\.toml:1: unknown section \[trainin\]\n.*did you mean 'training'"),
        ("[model]\nfamily = 'lama'\n", r"r\.toml:2: .*'lama'\n.*did you mean 'llama'"),
        ("[training]\nlr = 0.1\nlr = 0.2\n", "line 3"),
        ("[training]\n[training]\n", "line 2"),
        ("[training]\nlr = 1e400\n", r"r\.toml:2: training\.lr = inf: not a finite"),
        ("[training]\nlr = nan\n", "not a finite"),
        ("[training]\nlr = -0.1\n", r"training\.lr = -0\.1: .*greater than 0"),
        ("[training]\nlr = '0.1'\n", r"training\.lr = '0\.1'"),
        ("[training]\nlr = true\n", r"training\.lr = True"),
        ("[training]\nmax_steps = 0\n", r"training\.max_steps = 0"),
        ("[training]\nmax_steps = 9223372036854775808\n", "does not fit in 64 bits"),
        ("[training]\nmax_steps = 9223372036854775807\n", r"training\.max_steps"),
        ("[training]\nmax_steps = 1.5\n", r"training\.max_steps = 1\.5"),
        ("[training]\noptimizer = 'adam'\n", r"training\.optimizer = 'adam': .*'adamw'"),
        ("[model]\nd_model = 9223372036854775807\n", r"model\.d_model"),
        ("[model]\nd_model = 0\n", r"model\.d_model = 0"),
        ("[model]\nd_model = -8\n", r"model\.d_model = -8"),
        ("[model]\nn_layers = 1000000\n", r"model\.n_layers"),
        ("[model]\nd_model = '64'\n", r"model\.d_model = '64'"),
        ("[model]\nd_model = [64]\n", r"model\.d_model"),
        ("[tokenizer]\nvocab_size = -1\n", r"tokenizer\.vocab_size"),
        ("[tokenizer]\nvocab_size = 1099511627776\n", r"tokenizer\.vocab_size"),
        ("[corpus]\nseq_len = 0\n", r"corpus\.seq_len"),
        ("[text]\nvalid_fraction = 2.0\n", r"text\.valid_fraction"),
        ("[data]\npath = ['../secret']\n", "climbs out"),
        ("[data]\npath = 'a/../../secret'\n", "climbs out"),
        ('[data]\npath = "x\\u0000y"\n', "NUL"),
        ("[data]\npath = 3\n", r"data\.path"),
        ("[data]\npath = 'x'\nembedded = 'python-prose'\n", "not both"),
        (
            "[training]\nsampled_words = 100\n[task]\nname = 'classification'\n",
            r"training\.sampled_words = 100: only language_modeling",
        ),
        ("data = 3\n", "data"),
        ("x = " + "[" * 20000 + "]" * 20000, "TOML|nested|unknown"),
        ("= 3", "not valid TOML"),
        ("[training]\nlr = 2024-01-01\n", "text, numbers"),
        ("training = []\n", "training"),
    ],
)  # fmt: skip
def test_hostile_recipes_are_named_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.load(write(tmp_path, text))
    assert caught.value.exit_code == 2


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "bin.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "big.toml").write_bytes(b"#" * (recipe.MAX_RECIPE_BYTES + 1))
    for name in ("pipe", "bin", "big", "absent"):
        with pytest.raises(RecipeError, match=name):
            recipe.load(tmp_path / f"{name}.toml")


def test_overrides_are_typed_and_checked() -> None:
    loaded = recipe.load(
        "gpt-small",
        ["training.lr=0.25", "training.betas=[0.8, 0.9]", "tokenizer.kind=char",
         'model.d_model=96', "training.tensorboard=true", "text.field=a=b"],
    )  # fmt: skip
    assert loaded.training.lr == 0.25 and loaded.training.betas == (0.8, 0.9)
    assert loaded.tokenizer.kind == "char" and loaded.model.fields == {"d_model": 96}
    assert loaded.training.tensorboard is True and loaded.text.field == "a=b"
    for bad, message in [
        ("training.lrr=1", "did you mean 'lr'"), ("lr=1", "section.key=value"),
        ("training.lr", "section.key=value"), ("training.lr=fast", "training.lr = 'fast'"),
        ("training.lr=1\n[x]", "training.lr"), ("training.lr=", "training.lr = ''"),
        ("nosuch.key=1", "unknown section"), ("training.lr.x=1", "training.lr"),
    ]:  # fmt: skip
        with pytest.raises(RecipeError, match=message.replace(".", r"\.")):
            recipe.load("gpt-small", [bad])


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    loaded = recipe.load(write(tmp_path, "[data]\npath = 'books'\n"))
    assert loaded.data.path == (str(tmp_path / "books"),)


def test_only_given_values_are_fixed() -> None:
    """Defaults stay open for planning until they are saved."""
    loaded = recipe.load(None, ["training.seed=3"])
    assert loaded.to_dict(only_given=True) == {"training": {"seed": 3}}
    changed = loaded.with_values({"training": {"lr": 0.5}})
    assert changed.to_dict(only_given=True) == {"training": {"seed": 3, "lr": 0.5}}


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_text_survives_saving(text: str) -> None:
    made = recipe.from_dict({"text": {"field": text}, "evaluation": {"prompts": [text]}})
    read = tomllib.loads(made.to_toml({"text.field": f"because {text}"}))
    assert read["text"]["field"] == text and read["evaluation"]["prompts"] == [text]


@given(st.text(max_size=60))
def test_no_override_crashes(text: str) -> None:
    with contextlib.suppress(InkstoneError):
        assert isinstance(recipe.load(None, [text]), Recipe)

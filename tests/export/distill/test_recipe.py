"""Tests recipes in TOML."""

from __future__ import annotations

from pathlib import Path

import pytest

from mosrt_export.distill.recipe import Group, Penalty, Recipe, Stage
from mosrt_export.errors import ConfigError

TEXT = """
hours = 60
held_out = ["anna", "*/b"]
[groups]
"*" = { share = 2.0 }
old = { anchor = 1.5 }
[[stages]]
name = "only"
epochs = 2.5
microphones = true
[overall]
averaged = ["a"]
offset = 3
scale = 0.5
[overall.penalties]
b = { threshold = 3.0, slope = 0.25 }
"""


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return Recipe.read(str(path))


def test_a_file_names_what_differs(tmp_path: Path) -> None:
    found = read(tmp_path, TEXT)
    assert (found.hours, found.test_hours) == (60.0, Recipe().test_hours)
    assert found.stages == (Stage(name="only", epochs=2.5, microphones=True),)
    assert found.group("old/voice") == Group(anchor=1.5)
    assert found.group("anna") == Group(share=2.0)
    assert found.group_of("old/voice") == "old"
    assert found.overall is not None
    assert found.overall.penalties == {"b": Penalty(threshold=3.0, slope=0.25)}
    assert read(tmp_path, "") == Recipe.read(None) == Recipe()


def test_the_recipe_of_nano() -> None:
    found = Recipe.read("nano")
    assert found.hours == 60
    assert found.fidelity
    assert found.leave_out == ()
    assert [stage.epochs for stage in found.stages] == [7.0, 1.2]
    assert found.overall is not None
    assert found.overall.averaged == ("distillmos", "bvcc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hour = 3", "unknown key 'hour'; did you mean 'hours'"),
        ("[groups]\na = { shares = 1 }", "unknown key '.groups.a.shares'|'groups.a.shares'"),
        ('[[stages]]\nname = "x"\nepoch = 3', "stages"),
        ('[[stages]]\nname = "x"\nepochs = 1\nladder = 3', "unknown key 'stages.1.ladder'"),
        ("hours = -1", "hours must be from 0.001"),
        ("chunk_clips = 6", "a multiple of 4"),
        ("batch = 8", "no room"),
        ('hours = "3"', "hours must be float"),
        ("= 3", "not valid TOML"),
    ],
)
def test_errors_name_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert "recipe.toml" in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    for name in ("nobody", str(tmp_path / "none.toml")):
        with pytest.raises(ConfigError, match="pass nano or a file"):
            Recipe.read(name)

"""Messages that remember what they were made of, and their catalogues."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
from markupsafe import Markup, escape

from interpret.errors import ReportError
from interpret.language import Catalogue, listed, plural, read_catalogue, say

GERMAN = Catalogue(
    "de",
    {
        "{count} of {total} calls differ": "Von {total} Aufrufen weichen {count} ab",
        "{n} call": "{n} Aufruf",
        "{n} calls": "{n} Aufrufe",
        "Zeros": "Nullen",
        "First {what}": "Zuerst {what}",
    },
)


def test_a_message_is_its_english_text():
    message = say("{count} of {total} calls differ", count=3, total=199)
    assert message == "3 of 199 calls differ"
    assert json.loads(json.dumps({"message": message})) == {"message": "3 of 199 calls differ"}
    for twin in (copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
        assert twin == message
        assert GERMAN(twin) == "Von 199 Aufrufen weichen 3 ab"


def test_a_translation_orders_the_values_as_it_likes():
    assert GERMAN(say("{count} of {total} calls differ", count=3, total=199)) == "Von 199 Aufrufen weichen 3 ab"


def test_values_that_are_messages_are_translated_too():
    assert GERMAN(say("First {what}", what=plural(2, "{n} call", "{n} calls"))) == "Zuerst 2 Aufrufe"
    assert GERMAN(plural(1, "{n} call", "{n} calls")) == "1 Aufruf"
    assert GERMAN(listed([say("Zeros"), "Zeros"], " · ")) == "Nullen · Zeros"  # the second is somebody's name


def test_what_has_no_entry_stays_english_and_what_is_no_message_stays_itself():
    assert GERMAN(say("Anything")) == "Anything"
    assert GERMAN("Zeros") == "Zeros"
    assert GERMAN(None) is None


def test_text_is_escaped_and_markup_is_kept():
    name, marker = "<b>&", Markup("<i>m</i>")
    inner = say("{marker} a<b", marker=marker)
    assert str(escape(say("First {what}", what=name))) == "First &lt;b&gt;&amp;"
    assert str(escape(say("{a} & {b}", a=marker, b=name))) == "<i>m</i> &amp; &lt;b&gt;&amp;"
    assert str(escape(GERMAN(say("First {what}", what=inner)))) == "Zuerst <i>m</i> a&lt;b"


def test_braces_of_a_value_are_text():
    assert say("First {what}", what="{0} {x}") == "First {0} {x}"
    assert listed(["{a}", "b"], "{}") == "{a}{}b"


def test_the_first_folder_with_a_catalogue_wins(tmp_path: Path):
    for name, text in (("own", "Nix"), ("ours", "Nullen")):
        (tmp_path / name / "lang").mkdir(parents=True)
        (tmp_path / name / "lang" / "de.json").write_text(json.dumps({"Zeros": text}))
    folders = [tmp_path / "own", tmp_path / "ours"]
    assert read_catalogue("de", folders)(say("Zeros")) == "Nix"
    assert read_catalogue("en", folders) == Catalogue()


@pytest.mark.parametrize("language", ["fr", "../de", "", "de/.."])
def test_an_unknown_language_names_those_there_are(tmp_path: Path, language: str):
    (tmp_path / "lang").mkdir()
    (tmp_path / "lang" / "de.json").write_text("{}")
    with pytest.raises(ReportError, match="choose en or de"):
        read_catalogue(language, [tmp_path])


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a {x}": "b {y}"}'])
def test_a_broken_catalogue_is_named(tmp_path: Path, text: str):
    (tmp_path / "lang").mkdir()
    (tmp_path / "lang" / "de.json").write_text(text)
    with pytest.raises(ReportError, match=r"de\.json"):
        read_catalogue("de", [tmp_path])

"""Sentences that can be said in another language: English in the code, every other language in one catalogue.

Whatever a reader of the report sees as words is made by :func:`say`, in Python and in the templates alike. Its result
is the English text, and stays it in comparison.json; the report translates it when it is printed:

    say("{zero} of {filters} filters are zero", zero="144", filters="480")

A catalogue is `lang/LANGUAGE.json` in the templates folder: English pattern to the other language's pattern. The values
keep their names, so a translation may put them in another order.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import escape

from interpret.errors import ReportError

ENGLISH = "en"
FOLDER = "lang"


class Message(str):
    """An English text that remembers its pattern and its values; elsewhere it is a string like any other.

    Attributes:
        pattern: the text with the names of its values in braces.
        values: name to value; a value may be a message itself.
    """

    pattern: str
    values: Mapping[str, Any]

    def __new__(cls, pattern: str, values: Mapping[str, Any]) -> Message:
        """Return the text of a pattern with its values."""
        message = super().__new__(cls, pattern.format(**values))
        message.pattern, message.values = pattern, values
        return message

    def __html__(self) -> str:
        """Return the text as markup: values that are markup stay it, all else is escaped."""
        return escape(self.pattern).format(**self.values)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle and copy make it from."""
        return Message, (self.pattern, dict(self.values))


def say(pattern: str, /, **values: Any) -> Message:
    """The pattern with its values, translatable.

    >>> say("{count} of {total} calls differ", count=3, total=199)
    '3 of 199 calls differ'
    """
    return Message(pattern, values)


def plural(number: int, one: str, many: str, /, **values: Any) -> Message:
    """One of two patterns, which may name the number `n`.

    >>> plural(1, "{n} call", "{n} calls"), plural(2, "{n} call", "{n} calls")
    ('1 call', '2 calls')
    """
    return Message(one if number == 1 else many, {"n": number, **values})


def listed(items: Iterable[Any], separator: str = ", ") -> Message:
    """Several texts in a row, each translatable.

    >>> listed([say("Zeros"), "conv1"])
    'Zeros, conv1'
    """
    values = {f"item{number}": item for number, item in enumerate(items)}
    return Message(separator.replace("{", "{{").replace("}", "}}").join(f"{{{name}}}" for name in values), values)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What the messages are in one language; English needs no entries.

    Attributes:
        language: its tag, as HTML's `lang` takes it.
        messages: English pattern to this language's.
    """

    language: str = ENGLISH
    messages: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, value: Any) -> Any:
        """Return a message in this language, with its values; anything else as it is."""
        if not isinstance(value, Message):
            return value
        values = {name: self(item) for name, item in value.values.items()}
        return Message(self.messages.get(value.pattern, value.pattern), values)


def read_catalogue(language: str, folders: Sequence[Path]) -> Catalogue:
    """The catalogue of a language, from the first folder of templates that has one.

    Raises:
        ReportError: no folder has one, or it is no table of texts.
    """
    if language == ENGLISH:
        return Catalogue()
    catalogues = {file.stem: file for folder in reversed(folders) for file in (folder / FOLDER).glob("*.json")}
    if language not in catalogues:
        known = [ENGLISH, *sorted(catalogues)]
        raise ReportError(f"no catalogue for the language {language!r}; choose {' or '.join(known)}")
    path = catalogues[language]
    try:
        messages = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"catalogue {str(path)!r} cannot be read: {error}") from error
    if not isinstance(messages, dict) or not all(isinstance(text, str) for text in messages.values()):
        raise ReportError(f"catalogue {str(path)!r} is no table of English text and translation")
    for pattern, text in messages.items():
        unknown = names_in(text) - names_in(pattern)
        if unknown:
            raise ReportError(f"catalogue {str(path)!r}: {text!r} names {min(unknown)!r}, which {pattern!r} has not")
    return Catalogue(language, messages)


def names_in(pattern: str) -> set[str]:
    """The names of a pattern's values, with whatever follows them inside their braces.

    >>> sorted(names_in("{count} of {total:d}"))
    ['count', 'total:d']
    """
    try:
        fields = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise ReportError(f"{pattern!r} is no pattern: {error}") from error
    names = ((name, f"!{kind}" if kind else "", f":{form}" if form else "") for _, name, form, kind in fields)
    return {f"{name}{kind}{form}" for name, kind, form in names if name is not None}

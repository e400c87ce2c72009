"""What each section of the report shows: evidence in, plain data for its template out.

A section is one module here with a function ``build``, one template in ``templates/sections`` and one line in
:data:`SECTIONS`. ``build`` returns the data that the template prints, or None where nothing was recorded: the report
then says so, and only an optional section is left out. Templates hold no arithmetic; whatever they print was chosen,
ordered and rounded here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interpret.language import say
from interpret.sections import (
    alignment,
    appendix,
    architecture,
    chapters,
    explanations,
    identity,
    method,
    overview,
    predictions,
    timeline,
    verdict,
)
from interpret.sections.subject import Subject

Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the report: ``build`` makes what ``template`` prints, or None where nothing was recorded.

    An ``optional`` section is left out then: it is about something that most reports are not about.
    """

    id: str
    title: str
    template: str
    build: Callable[[Subject], Data | None]
    optional: bool = False


SECTIONS: tuple[Section, ...] = (
    Section("verdict", say("Verdict"), "sections/verdict.html.jinja", verdict.build),
    Section("identity", say("Identity and provenance"), "sections/identity.html.jinja", identity.build),
    Section("architecture", say("Architecture"), "sections/architecture.html.jinja", architecture.build),
    Section("overview", say("Layer overview"), "sections/overview.html.jinja", overview.build),
    Section("alignment", say("Alignment"), "sections/alignment.html.jinja", alignment.build, optional=True),
    Section("timeline", say("Timeline"), "sections/timeline.html.jinja", timeline.build, optional=True),
    Section("chapters", say("Layers that matter"), "sections/chapters.html.jinja", chapters.build),
    Section("predictions", say("Predictions and maps"), "sections/predictions.html.jinja", predictions.build),
    Section("explanations", say("Explanations"), "sections/explanations.html.jinja", explanations.build),
    Section("method", say("Method and limits"), "sections/method.html.jinja", method.build),
    Section("appendix", say("Appendix"), "sections/appendix.html.jinja", appendix.build),
)
COMPACT = ("verdict", "identity", "overview", "predictions")  # the sections of the small file beside a run
BRIEF = ("verdict", "identity", "overview")  # the sections of the brief form

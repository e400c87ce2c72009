"""A policy: limits that a run must keep, read from TOML and held against evidence. A gate for CI.

A rule names one value, of every layer or of the whole run, and its limits; or findings, and the severity that is too
much. Names are those of comparison.json, and are looked up in the data. What a rule could not check is "not checked",
never "kept".
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

from interpret.comparison import Comparison, compare
from interpret.errors import InterpretError, did_you_mean
from interpret.evidence import KINDS, Evidence, as_evidence
from interpret.findings import SEVERITIES, Finding, findings_between, findings_of, most_severe_first
from interpret.findings.advice import ADVICE
from interpret.findings.alone import RUN_RULES
from interpret.findings.compared import RULES
from interpret.measures.runs import Health

Value = float | str | None  # float includes int and bool
VIOLATED, KEPT, NOT_CHECKED = "violated", "kept", "not checked"
VERDICTS = (VIOLATED, NOT_CHECKED, KEPT)  # as the table orders them
DEFAULT = "default"
NEEDS_REFERENCE = "needs a reference"
NUMERIC = ("min", "max", "max_increase", "max_decrease")
MISSING = ("ignore", "fail")
EXACT = ("silent-units-appeared",)  # findings that need the very same images
SUBJECTS = ('value = "dead_units"', 'finding = "*"')
SHOWN = 10  # violations of one rule in the table, before it sums up the rest


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy; docs/policy.md describes the keys.

    Attributes:
        name: what the table and JUnit call it; made from the rest where the policy gives none.
        value: name of a value of comparison.json, of layers or of the run; may be a glob.
        finding: globs of the names of findings; instead of `value`.
        layers, exclude: globs of the layers that count, and that do not; all and none where empty.
        kinds: kinds of the layers that count; all where empty.
        min, max: limits, both allowed.
        max_increase, max_decrease: limits of the difference to the reference's own value.
        one_of: the allowed values.
        fail_on: the mildest severity of a finding that violates the rule.
        ignore: globs of findings that do not.
        missing: "fail" makes what cannot be checked a violation; "ignore" also allows layers that do not exist.
    """

    name: str = ""
    value: str | None = None
    finding: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None
    max_increase: float | None = None
    max_decrease: float | None = None
    one_of: tuple[float | str, ...] = ()
    fail_on: str | None = None
    ignore: tuple[str, ...] = ()
    missing: str | None = None

    @property
    def limit(self) -> str:
        """The limit in words."""
        if self.fail_on is not None:
            return f"below {self.fail_on}"
        if self.one_of:
            return f"one of {', '.join(map(shown, self.one_of))}"
        words = {
            "min": "at least {}",
            "max": "at most {}",
            "max_increase": "at most {} above the reference",
            "max_decrease": "at most {} below the reference",
        }
        limits = {name: getattr(self, name) for name in words}
        return " and ".join(words[name].format(shown(limit)) for name, limit in limits.items() if limit is not None)

    @property
    def relative(self) -> bool:
        """Whether it compares with the reference's own value."""
        return self.max_increase is not None or self.max_decrease is not None

    def slack(self, value: float, reference: float | None) -> float:
        """How far a number stays from its nearest limit; negative beyond it."""
        room = [
            None if self.max is None else self.max - value,
            None if self.min is None else value - self.min,
            None if self.max_increase is None or reference is None else self.max_increase - (value - reference),
            None if self.max_decrease is None or reference is None else self.max_decrease - (reference - value),
        ]
        return min((distance for distance in room if distance is not None), default=math.inf)


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules, and where they come from."""

    source: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """One value against one rule.

    Attributes:
        run: label of the run.
        rule: name of the rule.
        layer: key of the call, or None for what is of the whole run.
        name: name of the value or of the finding.
        value: what the run has; of findings, the severity.
        reference: what the reference has, where the rule compares with it.
        limit: the limit in words.
        verdict: "violated", "kept" or "not checked".
        reason: the finding's sentence, or why there is no value.
    """

    run: str
    rule: str
    layer: str | None
    name: str
    value: Value
    reference: Value
    limit: str
    verdict: str
    reason: str | None = None

    @property
    def sentence(self) -> str:
        """Layer, value and limit in one line."""
        where = f"{self.layer}: " if self.layer is not None else ""
        if self.value is None:
            return f"{where}{self.name}: {self.reason}"
        beside = f" (reference {shown(self.reference)})" if self.reference is not None else ""
        return f"{where}{self.name} is {shown(self.value)}{beside}, allowed is {self.limit}"


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """What a policy says of one run or of several.

    Attributes:
        policy: where its rules come from.
        reference: label of the reference; None where a run was checked alone.
        runs: labels of the runs that were checked.
        rules: names of the rules.
        checks: every value against every rule, by run, rule and layer.
        created: when each run was audited, ISO 8601 in UTC.
    """

    policy: str
    reference: str | None
    runs: tuple[str, ...]
    rules: tuple[str, ...]
    checks: tuple[Check, ...]
    created: Mapping[str, str]

    @property
    def violated(self) -> bool:
        """Whether any rule is violated."""
        return any(check.verdict == VIOLATED for check in self.checks)

    def by_rule(self) -> list[tuple[str, list[Check]]]:
        """For every run and rule its verdict and the checks that made it: violated rules first, then not checked."""
        groups: dict[tuple[str, str], list[Check]] = {(run, rule): [] for run in self.runs for rule in self.rules}
        for check in self.checks:
            groups[check.run, check.rule].append(check)
        found = []
        for checks in groups.values():
            verdict = next(v for v in (VIOLATED, KEPT, NOT_CHECKED) if any(check.verdict == v for check in checks))
            found.append((verdict, [check for check in checks if check.verdict == verdict]))
        return sorted(found, key=lambda item: VERDICTS.index(item[0]))

    def table(self) -> dict[str, list[str | None]]:
        """Columns for people: each violation (at most ten of a rule), each other rule once, with its tightest value."""
        rows: list[tuple[str | None, ...]] = []
        for verdict, checks in self.by_rule():
            most = SHOWN if verdict == VIOLATED else 1
            for check in checks[:most]:
                beside = f" (reference {shown(check.reference)})" if check.reference is not None else ""
                value = None if check.value is None else f"{shown(check.value)}{beside}"
                more = f" and {len(checks) - 1} more" if verdict != VIOLATED and len(checks) > 1 else ""
                layer = None if check.layer is None else f"{check.layer}{more}"
                why = f": {check.reason}" if check.value is None and check.reason else ""
                rows.append((check.run, check.rule, layer, value, f"{check.name} {check.limit}", f"{verdict}{why}"))
            if verdict == VIOLATED and len(checks) > most:
                rows.append((checks[0].run, checks[0].rule, f"{len(checks) - most} more", None, None, verdict))
        titles = ("run", "rule", "layer", "value", "limit", "verdict")
        return {title: [row[place] for row in rows] for place, title in enumerate(titles)}

    def summary(self) -> list[str]:
        """How many rules each run keeps, and the sentences of the findings that violate some."""
        groups = self.by_rule()
        said = [
            f"{check.run}: {check.reason}"
            for verdict, checks in groups
            for check in checks
            if verdict == VIOLATED and check.value is not None and check.reason is not None
        ]
        lines = []
        for run in self.runs:
            verdicts = [verdict for verdict, checks in groups if checks[0].run == run]
            counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS)
            lines.append(f"{run}: {counts}, of {len(verdicts)} rules")
        said = list(dict.fromkeys(said))
        return [*said[:SHOWN], *([f"... and {len(said) - SHOWN} more findings"] if len(said) > SHOWN else []), *lines]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as strict JSON.

        ::

            {"policy", "reference": LABEL or null, "violated": bool,
             "rules": [{"run", "rule", "verdict": "violated|kept|not checked", "values": how many made the verdict}],
             "checks": [{"run", "rule", "layer", "name", "value", "reference", "limit", "verdict", "reason"}]}
        """
        return {
            "policy": self.policy,
            "reference": self.reference,
            "violated": self.violated,
            "rules": [
                {"run": checks[0].run, "rule": checks[0].rule, "verdict": verdict, "values": len(checks)}
                for verdict, checks in self.by_rule()
            ],
            "checks": [dataclasses.asdict(check) for check in self.checks],
        }


def check_policy(
    *runs: Evidence | str | Path,
    policy: Policy | str | Path | None = None,
    labels: Sequence[str] | None = None,
    origins: Sequence[Mapping[str, Any]] | None = None,
) -> PolicyResult:
    """Hold runs against a policy, from their evidence alone.

    Args:
        *runs: evidence, or folders of bundles. One is checked alone; of several, each other one against the first.
        policy: a TOML file; None or "default" for the policy that comes with this package.
        labels: names of the runs, as :func:`interpret.compare` takes them.
        origins: what MLflow says of the runs, as :func:`interpret.compare` takes it.

    Raises:
        InterpretError: the policy cannot be read, contradicts itself, or names what does not exist; or none of its
            rules can be checked.
        EvidenceError: a folder holds no finished bundle.
    """
    if not runs:
        raise InterpretError("a policy needs at least one run to check; none was given")
    chosen = policy if isinstance(policy, Policy) else read_policy(policy)
    for what, given in (("labels", labels), ("origins", origins)):
        if given is not None and len(given) != len(runs):
            raise InterpretError(f"{len(given)} {what} were given for {len(runs)} runs; give one for each")
    alone = len(runs) == 1
    if alone:  # beside itself: the names are those of a comparison, and the own values are there
        runs = (as_evidence(runs[0]),) * 2
        labels, origins = (None if given is None else [*given, *given] for given in (labels, origins))
    compared = _Compared(compare(*runs, labels=labels, origins=origins), alone)
    plans = [_plan(rule, f"{chosen.source}: rule {rule.name!r}", compared) for rule in chosen.rules]
    _refuse_contradictions(plans)
    checks = tuple(check for run in compared.runs for plan in plans for check in _checks(plan, run, compared))
    if all(check.verdict == NOT_CHECKED for check in checks):
        reasons = {check.rule: check.reason for check in reversed(checks)}
        listed = "; ".join(f"{rule.name!r}: {reasons[rule.name]}" for rule in chosen.rules)
        raise InterpretError(f"{chosen.source}: none of the rules can be checked. {listed}")
    evidence = compared.comparison.evidence
    return PolicyResult(
        policy=chosen.source,
        reference=None if alone else compared.comparison.reference,
        runs=compared.runs,
        rules=tuple(rule.name for rule in chosen.rules),
        checks=checks,
        created={run: str(evidence[run].journal.get("created_utc", "1970-01-01T00:00:00Z")) for run in compared.runs},
    )


def shown(value: Value) -> str:
    """A value in words: six digits of a number, as TOML writes a boolean.

    >>> shown(0.1 + 0.2), shown(3), shown(True), shown("identical"), shown(None)
    ('0.3', '3', 'true', 'identical', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# Reading --------------------------------------------------------------------------------------------------------------


def default_policy() -> str:
    """The text of the policy that comes with this package, to be edited."""
    return resources.files("interpret").joinpath("default_policy.toml").read_text("utf-8")


def read_policy(file: str | Path | None = None) -> Policy:
    """The rules of a TOML file; of the policy that comes with this package for None and "default".

    Raises:
        InterpretError: the file is missing, no TOML, or holds a rule that cannot be meant.
    """
    source = DEFAULT if file is None else str(file)
    try:
        text = default_policy() if source == DEFAULT else Path(source).read_text("utf-8")
        content = tomllib.loads(text)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InterpretError(
            f"there is no policy file {source!r}; start from the default one: interpret check --show-policy"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InterpretError(f"the policy {source} is not TOML: {error}") from error
    except (OSError, ValueError) as error:
        raise InterpretError(f"the policy {source!r} cannot be read: {error}") from error
    for key in content:
        if key != "rule":
            raise InterpretError(f"the policy {source} has an unknown table {key!r}; a policy is a list of [[rule]]")
    entries = content.get("rule")
    if not isinstance(entries, list) or not entries:
        raise InterpretError(f"the policy {source} holds no rules; each begins with a line [[rule]]")
    rules = [_read_rule(entry, f"the policy {source}, rule {place}") for place, entry in enumerate(entries, 1)]
    names = [rule.name for rule in rules]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InterpretError(f"the policy {source} has two rules {name!r}; give each a name of its own")
    return Policy(source, tuple(rules))


def _read_rule(entry: Any, where: str) -> Rule:
    """One [[rule]], every key checked."""
    if not isinstance(entry, dict):
        raise InterpretError(f"{where} is no table; begin it with a line [[rule]]")
    if isinstance(entry.get("name"), str):
        where = f"{where} ({entry['name']!r})"
    keys = [item.name for item in dataclasses.fields(Rule)]
    for key in entry:
        if key not in keys:
            raise InterpretError(f"{where} has an unknown key {key!r}{_hint(key, keys)}")
    rule = Rule(**{key: _read(key, value, where) for key, value in entry.items()})
    if (rule.value is None) == (not rule.finding):
        raise InterpretError(f"{where} must name either a value or a finding: {' or '.join(SUBJECTS)}")
    limits = [key for key in (*NUMERIC, "one_of") if key in entry]
    theirs = ("one_of", *NUMERIC) if rule.finding else ("fail_on", "ignore")
    for key in theirs:
        if key in entry:
            other = "value" if rule.finding else "finding"
            raise InterpretError(f"{where} has {key!r}, which belongs to rules with {other!r}")
    if rule.finding and rule.fail_on is None:
        raise InterpretError(f"{where} does not say which severity is too much: fail_on = {' or '.join(SEVERITIES)}")
    if rule.value is not None and not limits:
        raise InterpretError(f"{where} has no limit; give one of {', '.join((*NUMERIC, 'one_of'))}")
    if "one_of" in limits and len(limits) > 1:
        raise InterpretError(f"{where} has one_of and {limits[0]}; give the values, or the limits of a number")
    if rule.min is not None and rule.max is not None and rule.min > rule.max:
        raise InterpretError(f"{where} can never be kept: min {shown(rule.min)} is above max {shown(rule.max)}")
    if not rule.name:
        layers = f" in {', '.join(rule.layers)}" if rule.layers else ""
        rule = dataclasses.replace(rule, name=f"{rule.value or ', '.join(rule.finding)} {rule.limit}{layers}")
    return rule


def _read(key: str, value: Any, where: str) -> Any:
    """The value of one key, of its type."""
    if key in NUMERIC:
        if not _is_number(value) or not math.isfinite(value):
            raise InterpretError(f"{where}: {key} is a number, not {value!r}")
        return value
    if key == "one_of":
        if not isinstance(value, list) or not value or not all(isinstance(item, str | int | float) for item in value):
            raise InterpretError(f"{where}: one_of is a list of the allowed values, not {value!r}")
        return tuple(value)
    choices = {"kinds": KINDS, "fail_on": SEVERITIES, "missing": MISSING}.get(key)
    listed = key in ("finding", "layers", "exclude", "kinds", "ignore")
    items = value if listed and isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item for item in items):
        raise InterpretError(f"{where}: {key} is a text{' or a list of texts' if listed else ''}, not {value!r}")
    for item in items:
        if choices is not None and item not in choices:
            raise InterpretError(f"{where}: {key} cannot be {item!r}{_hint(item, choices)}")
    return tuple(items) if listed else value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hint(word: str, known: Iterable[str]) -> str:
    """The known words that are meant: those that end like it, else the closest, else all."""
    names = list(known)
    ending = [name for name in names if name.endswith(f".{word}")]
    if ending:
        return f"; did you mean {' or '.join(map(repr, ending[:3]))}?"
    brief = list(dict.fromkeys(re.sub(r"^(\w+)\..+\.(\w+)$", r"\1.*.\2", name) for name in names))
    return did_you_mean(word, names) or f"; there are {', '.join(brief)}"


# Looking up -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer of one run: comparison.json's entry, nested names joined by dots."""

    key: str
    kind: str
    values: Mapping[str, Value]
    reference: Mapping[str, Value]
    reason: str


class _Compared:
    """A comparison as a policy sees it: named values of layers and of runs, and findings.

    Attributes:
        runs: labels of the runs to check.
        layers: by label of a run, its layers.
        values: by label of a run, the values of the whole run.
        layer_names, run_names: every name that occurs, also those that need a reference.
        parts: names in a layer's entry that never hold a single value, such as "maps".
    """

    def __init__(self, comparison: Comparison, alone: bool) -> None:
        content = comparison.to_dict()
        self.comparison = comparison
        self.alone = alone
        self.runs = (comparison.reference,) if alone else comparison.others
        self.findings = {run: self._findings(run) for run in self.runs}
        entries = [layer["runs"] for layer in content["layers"]]
        self.layers = {run: [self._layer(layer, run) for layer in content["layers"]] for run in self.runs}
        self.values = {run: _run_values(content, run) for run in self.runs}
        self.reasons = {run: "; ".join(content["comparable"].get(run, {}).get("reasons", ())) for run in self.runs}
        flat = [_flat(_keyed(entry)) for by_run in entries for entry in by_run.values()]
        tables = {name.partition(".")[0] for values in flat for name in values if "." in name}
        self.layer_names = dict.fromkeys(name for values in flat for name in values if name not in tables)
        self.run_names = dict.fromkeys(name for run in comparison.labels for name in _run_values(content, run))
        single = {name for values in flat for name, value in values.items() if value is not None}
        self.parts = {name for by_run in entries for entry in by_run.values() for name in entry} - single
        self._own = {item.name for item in dataclasses.fields(Health)} | set(content["runs"][0])

    def needs_reference(self, name: str) -> bool:
        """Whether a value or finding says nothing of a run alone."""
        return self.alone and name.partition(".")[0] not in self._own

    def can_find(self, rule: str, run: str) -> bool:
        """Whether what a rule of findings looks at was there to be looked at."""
        needed = ADVICE[rule].needs
        found = self.values[run].get(f"comparable.{needed}")
        return not needed or self.alone or (found == "exact" if rule in EXACT else found not in (None, "no"))

    def _layer(self, layer: Mapping[str, Any], run: str) -> _Layer:
        entry = layer["runs"][run]
        reference = {} if self.alone else layer["runs"][self.comparison.reference]
        absent = "the run lacks this layer" if entry["presence"] == "removed" else "not recorded, or does not apply"
        reason = "; ".join(entry["reasons"]) or absent
        return _Layer(layer["key"], layer["kind"], _flat(_keyed(entry)), _flat(_keyed(reference)), reason)

    def _findings(self, run: str) -> tuple[Finding, ...]:
        """All findings about a run, also those that its reference shares."""
        own = findings_of(self.comparison.runs[run], run)
        between = () if self.alone else findings_between(self.comparison.measures[run], run)
        return most_severe_first((*between, *own))


def _run_values(content: Mapping[str, Any], run: str) -> dict[str, Value]:
    """What comparison.json says of a whole run: its entry in `runs`, and everything that is kept by label."""
    place = next(place for place, entry in enumerate(content["runs"]) if entry["label"] == run)
    by_label = {name: part[run] for name, part in content.items() if isinstance(part, Mapping) and run in part}
    return _flat(content["runs"][place]) | _flat(by_label) | {"mean_cka": content["mean_cka"][0][place]}


def _keyed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's entry with its lists of tables, such as `tensors`, as tables by name."""
    return {
        key: {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
        if isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value)
        else value
        for key, value in entry.items()
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested tables as one, names joined by dots; lists are no values and left out."""
    values: dict[str, Value] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            values |= _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, Sequence) or isinstance(value, str):
            values[f"{prefix}{key}"] = value
    return values


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a rule looks at: which names, at which layers (None: of the whole run); or why there is nothing."""

    rule: Rule
    where: str
    names: tuple[str, ...] = ()
    layers: frozenset[str] | None = None
    reason: str | None = None

    def cells(self) -> set[tuple[str | None, str]]:
        """Every layer (None: the run) with every name."""
        return {(layer, name) for layer in ({None} if self.layers is None else self.layers) for name in self.names}


def _plan(rule: Rule, where: str, compared: _Compared) -> _Plan:
    layers = _layers(rule, where, compared)
    names, of_layers = _finding_names(rule, where), True
    if rule.value is not None:
        names, of_layers = _value_names(rule.value, where, compared)
        if not of_layers and (rule.layers or rule.exclude or rule.kinds):
            raise InterpretError(f"{where}: {rule.value} is a value of the whole run; leave out layers and kinds")
        if not of_layers and rule.relative and any(_of_reference(name) not in compared.run_names for name in names):
            raise InterpretError(f"{where}: the reference has no {rule.value} of its own; give min or max")
    plan = _Plan(rule, where, names, layers if of_layers else None)
    if not names:
        part = str(rule.value).partition(".")[0]
        return dataclasses.replace(plan, reason=f"no {part} were compared")
    if not layers and of_layers:
        looked = f"kind {' or '.join(rule.kinds)}" if rule.kinds else "that name"
        return dataclasses.replace(plan, reason=f"no layer of {looked}")
    compare_only = {_name(rule) for rule in RULES} - {_name(rule) for rule in RUN_RULES}
    if compared.alone and (
        (rule.finding and set(names) <= compare_only)
        or (rule.value is not None and (rule.relative or all(map(compared.needs_reference, names))))
    ):
        return dataclasses.replace(plan, reason=NEEDS_REFERENCE)
    return plan


def _layers(rule: Rule, where: str, compared: _Compared) -> frozenset[str]:
    """Keys of the layers that a rule is about."""
    rows = compared.layers[compared.runs[0]]
    keys = [layer.key for layer in rows]
    for pattern in (*rule.layers, *rule.exclude):
        if rule.missing is None and not any(_matches(key, pattern) for key in keys):
            hint = did_you_mean(pattern, keys) or f"; there are {', '.join(keys[:6])}, ..."
            raise InterpretError(
                f"{where}: no layer matches {pattern!r}{hint}; in a policy for several networks, add "
                'missing = "ignore" to the rule'
            )
    return frozenset(
        layer.key
        for layer in rows
        if (not rule.layers or any(_matches(layer.key, pattern) for pattern in rule.layers))
        and not any(_matches(layer.key, pattern) for pattern in rule.exclude)
        and (not rule.kinds or layer.kind in rule.kinds)
    )


def _matches(key: str, pattern: str) -> bool:
    """Whether a pattern names a call: its key, its module (all executions), or a glob of the key."""
    return pattern in (key, key.partition("#")[0]) or fnmatchcase(key, pattern)


def _value_names(value: str, where: str, compared: _Compared) -> tuple[tuple[str, ...], bool]:
    """The names that a rule's value matches, and whether they are of layers; none where the data have no such part."""
    for names in (compared.layer_names, compared.run_names):
        if value in names:
            return (value,), names is compared.layer_names
        if found := tuple(name for name in names if fnmatchcase(name, value)):
            return found, names is compared.layer_names
    part = value.partition(".")[0]
    known = [*compared.layer_names, *compared.run_names]
    if part in compared.parts and value != part and not any(name.startswith(f"{part}.") for name in known):
        return (), True
    raise InterpretError(f"{where}: there is no value {value!r}{_hint(value, known)}")


def _finding_names(rule: Rule, where: str) -> tuple[str, ...]:
    """The names of the findings that a rule is about."""
    known = list(dict.fromkeys(_name(found) for found in (*RUN_RULES, *RULES)))
    for pattern in (*rule.finding, *rule.ignore):
        if not any(fnmatchcase(name, pattern) for name in known):
            raise InterpretError(f"{where}: there is no finding {pattern!r}{_hint(pattern, known)}")
    names = tuple(
        name
        for name in known
        if any(fnmatchcase(name, pattern) for pattern in rule.finding)
        and not any(fnmatchcase(name, pattern) for pattern in rule.ignore)
    )
    if rule.finding and not names:
        raise InterpretError(f"{where} ignores all findings that it names; leave it out")
    return names


def _name(rule: Any) -> str:
    return str(rule.__name__).replace("_", "-")


def _of_reference(name: str) -> str:
    """Where comparison.json keeps the reference's own value of a whole run.

    >>> _of_reference("predictions.accuracy")
    'predictions.reference_accuracy'
    """
    head, dot, tail = name.rpartition(".")
    return f"{head}{dot}reference_{tail}"


def _refuse_contradictions(plans: Sequence[_Plan]) -> None:
    """Refuse rules that no value can keep at once."""
    seen: list[_Plan] = []
    for plan in plans:
        for earlier in seen:
            shared = plan.cells() & earlier.cells() if _exclude(plan.rule, earlier.rule) else set()
            if shared:
                layer, name = min(shared, key=lambda cell: (cell[0] or "", cell[1]))
                at = "" if layer is None else f" at {layer}"
                raise InterpretError(
                    f"{plan.where} contradicts rule {earlier.rule.name!r}: {name}{at} cannot be "
                    f"{plan.rule.limit} and {earlier.rule.limit}"
                )
        seen.append(plan)


def _exclude(a: Rule, b: Rule) -> bool:
    """Whether no value keeps both rules."""
    low = max((rule.min for rule in (a, b) if rule.min is not None), default=-math.inf)
    high = min((rule.max for rule in (a, b) if rule.max is not None), default=math.inf)
    lists = [rule.one_of for rule in (a, b) if rule.one_of]
    if not lists:
        return low > high
    allowed = [value for value in lists[0] if all(_among(value, values) for values in lists)]
    return not any(not _is_number(value) or low <= value <= high for value in allowed)


def _among(value: float | str, allowed: Iterable[float | str]) -> bool:
    """Whether a value is listed; true is not 1."""
    return any(isinstance(value, bool) == isinstance(item, bool) and value == item for item in allowed)


# Checking -------------------------------------------------------------------------------------------------------------


def _checks(plan: _Plan, run: str, compared: _Compared) -> Iterator[Check]:
    """Every check of one rule in one run, the tightest first among those that are kept."""
    rule = plan.rule
    if plan.reason is not None:
        yield _missing(rule, run, None, rule.value or ", ".join(rule.finding), plan.reason)
    elif rule.finding:
        yield from _check_findings(plan, run, compared)
    elif plan.layers is None:
        values = compared.values[run]
        reason = compared.reasons[run] or "not recorded, or does not apply"
        for name in plan.names:
            if compared.needs_reference(name):
                yield _missing(rule, run, None, name, NEEDS_REFERENCE)
            else:
                reference = values.get(_of_reference(name)) if rule.relative else None
                yield _check(plan, run, None, name, values.get(name), reference, reason)
    else:
        found = list(_check_layers(plan, run, compared))
        if not found:
            yield _missing(rule, run, None, str(rule.value), "not recorded at these layers")
        yield from sorted(found, key=lambda check: _slack(rule, check) if check.verdict == KEPT else -math.inf)


def _check_layers(plan: _Plan, run: str, compared: _Compared) -> Iterator[Check]:
    rule = plan.rule
    for layer in compared.layers[run]:
        if layer.key not in (plan.layers or ()):
            continue
        for name in plan.names:
            if compared.needs_reference(name):
                yield _missing(rule, run, layer.key, name, NEEDS_REFERENCE)
            elif name in layer.values:
                reference = layer.reference.get(name) if rule.relative else None
                why = layer.values.get(f"{name.rpartition('.')[0]}.reason")
                yield _check(plan, run, layer.key, name, layer.values[name], reference, str(why or layer.reason))


def _check(plan: _Plan, run: str, layer: str | None, name: str, value: Value, reference: Value, reason: str) -> Check:
    """One value against the limits of one rule."""
    rule = plan.rule
    if value is None:
        return _missing(rule, run, layer, name, reason)
    if rule.one_of:
        verdict = KEPT if _among(value, rule.one_of) else VIOLATED
        return Check(run, rule.name, layer, name, value, None, rule.limit, verdict)
    if not _is_number(value):
        kind = "true or false" if isinstance(value, bool) else "a text"
        example = shown(value) if isinstance(value, bool) else f'"{value}"'
        raise InterpretError(
            f"{plan.where}: {name} is {kind} ({shown(value)}) and has no {rule.limit}; give one_of = [{example}]"
        )
    against = reference if _is_number(reference) else None
    if rule.relative and against is None:
        return _missing(rule, run, layer, name, "the reference has no value")
    verdict = KEPT if rule.slack(value, against) >= 0 else VIOLATED
    return Check(run, rule.name, layer, name, value, against, rule.limit, verdict)


def _check_findings(plan: _Plan, run: str, compared: _Compared) -> Iterator[Check]:
    """Every finding that violates a rule; one check where none does."""
    rule = plan.rule
    narrowed = bool(rule.layers or rule.exclude or rule.kinds)
    about = [
        finding
        for finding in compared.findings[run]
        if finding.rule in plan.names and (not narrowed or finding.layer in (plan.layers or ()))
    ]
    limit = SEVERITIES.index(str(rule.fail_on))
    severe = [finding for finding in about if SEVERITIES.index(finding.severity) <= limit]
    for found in severe:
        yield Check(run, rule.name, found.layer, found.rule, found.severity, None, rule.limit, VIOLATED, found.message)
    lost = [name for name in plan.names if not compared.can_find(name, run)]
    if lost and (rule.missing == "fail" or len(lost) == len(plan.names)) and not severe:
        yield _missing(rule, run, None, ", ".join(lost), compared.reasons[run] or "not recorded, or not comparable")
    elif not severe:
        worst = about[0].severity if about else "none"
        yield Check(run, rule.name, None, ", ".join(rule.finding), worst, None, rule.limit, KEPT)


def _missing(rule: Rule, run: str, layer: str | None, name: str, reason: str) -> Check:
    verdict = VIOLATED if rule.missing == "fail" else NOT_CHECKED
    return Check(run, rule.name, layer, name, None, None, rule.limit, verdict, reason)


def _slack(rule: Rule, check: Check) -> float:
    reference = check.reference if _is_number(check.reference) else None
    return rule.slack(check.value, reference) if _is_number(check.value) else math.inf

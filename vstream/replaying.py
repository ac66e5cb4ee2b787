"""What `python -m vstream watch … --replay LOG` does: the decisions of a log again, from what was found, without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data.command_line import reading
from data.errors import ConfigError, WatchError
from vstream.prompts import Prompts
from vstream.watches import WatchDecision, WatchRules, WatchState, parse_condition, read_log


def replay_file(path: Path, conditions: Sequence[str], rules: WatchRules, prompts: Prompts) -> str:
    """Decide again on every line of a log, in order, and say in words that it came out the same.

    conditions: what is watched for by `rules`; what a memory watched for besides goes by its own. Raises ConfigError for a log
    that cannot be read, WatchError for one that is damaged, of other watches, or where these rules lead to another decision.
    """
    with reading(path, "give a file that --log wrote", ConfigError):
        lines = path.read_text(encoding="utf-8").splitlines()
    log = read_log(lines)
    wanted = {parse_condition(words).text.lower(): words for words in conditions}
    states: dict[int, WatchState] = {}
    for number, (line, decision) in enumerate(zip(lines, log, strict=True), 1):
        watch = decision.findings.watch
        if watch not in states:
            states[watch] = _begun(line, wanted, rules, prompts, f"line {number} is the first of watch {watch}")
        again = states[watch].decide(decision.findings)
        if again != decision:
            raise WatchError(f"line {number} says {_words(decision)}, but these rules lead to {_words(again)}")
    missing = wanted.keys() - {state.watch.condition.text.lower() for state in states.values()}
    if states and missing:
        raise WatchError(f'the log knows no watch for "{wanted[min(missing)]}"; give each --when that it was made with')
    return f"{len(log)} decisions on {len(states)} watches, each the same again"


def _begun(line: str, wanted: dict[str, str], rules: WatchRules, prompts: Prompts, where: str) -> WatchState:
    """The watch as it was before its first decision, which `line` holds."""
    try:
        row = json.loads(line)["began"]
        own = parse_condition(row["written"]).text.lower() not in wanted
        return WatchState.of(row if own else row | {"rules": asdict(rules)}, prompts)
    except (KeyError, TypeError, AttributeError, WatchError) as error:
        raise WatchError(f"{where}, but does not say what it waits for; give a log from its beginning on") from error


def _words(decision: WatchDecision) -> str:
    return f'"{decision.verdict}: {decision.reason}"'

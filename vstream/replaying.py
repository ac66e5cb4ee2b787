"""What `python -m vstream watch … --replay LOG` does: the decisions of a log again, from what was found, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.errors import ConfigError, WatchError
from vstream.prompts import Prompts
from vstream.watches import Watch, WatchDecision, WatchRules, WatchState, parse_condition, read_log


def replay_file(path: Path, conditions: Sequence[str], rules: WatchRules, prompts: Prompts) -> str:
    """Decide again on every line of a log, in order, and say in words that it came out the same.

    conditions: what the watches wait for, in the order in which they were set. Raises ConfigError for a log that cannot be
    read, WatchError for one that is damaged, of other watches, or where these rules lead to another decision.
    """
    log = read_log(_lines(path))
    states = {
        number: WatchState(Watch(number, words, parse_condition(words), rules, 0.0), prompts)
        for number, words in enumerate(conditions, 1)
    }
    for line, decision in enumerate(log, 1):
        state = states.get(decision.findings.watch)
        if state is None:
            raise WatchError(f"line {line} is of watch {decision.findings.watch}; give every --when that the log was made with")
        again = state.decide(decision.findings)
        if again != decision:
            raise WatchError(f"line {line} says {_words(decision)}, but these rules lead to {_words(again)}")
    return f"{len(log)} decisions on {len(states)} watches, each the same again"


def _words(decision: WatchDecision) -> str:
    return f'"{decision.verdict}: {decision.reason}"'


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a file that --log wrote") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text; give a file that --log wrote") from error

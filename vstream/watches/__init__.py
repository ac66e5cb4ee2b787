"""Watches: "tell me when …", several at once, with every decision on record."""

from vstream.watches.base import Alert, Findings, Watch, WatchDecision, WatchRules, decision_row, read_log
from vstream.watches.condition import MAX_WATCHES, Condition, parse_condition
from vstream.watches.kept import KeptWatches
from vstream.watches.state import WatchState, replay
from vstream.watches.watching import Watches
from vstream.watches.webhook import Webhook, checked_hosts

__all__ = [
    "MAX_WATCHES",
    "Alert",
    "Condition",
    "Findings",
    "KeptWatches",
    "Watch",
    "WatchDecision",
    "WatchRules",
    "WatchState",
    "Watches",
    "Webhook",
    "checked_hosts",
    "decision_row",
    "parse_condition",
    "read_log",
    "replay",
]

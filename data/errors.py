"""The errors that a user can do something about; each message says what was wrong and what to do, in one line.

VStreamError
├── SourceError      a video, URL, camera or world that cannot be opened or read
├── QuestionError    a question, or a time in it, that cannot be answered
├── ConfigError      a setting that is unknown or out of range
├── WatchError       a watch that is empty, contradicts itself, or is one too many
├── AdapterError     a model that cannot be loaded or run
└── MemoryBankError  a memory folder or tier that cannot be used
"""


class VStreamError(Exception):
    """Base of all errors that are shown to a user as one line."""

    @property
    def line(self) -> str:
        """The message in one line, also where the name of a file in it is not."""
        return " ".join(str(self).splitlines())


def reason_of(error: BaseException) -> str:
    """What an error of somebody else's says, as a part of one line: at most 200 characters, at least its name."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class SourceError(VStreamError):
    """A video, URL, camera or world that cannot be opened or read."""


class QuestionError(VStreamError):
    """A question, or a time in it, that cannot be answered."""


class ConfigError(VStreamError):
    """A setting that is unknown or out of range."""


class AdapterError(VStreamError):
    """A model that cannot be loaded or run."""


class MemoryBankError(VStreamError):
    """A memory folder or tier that cannot be used."""


class WatchError(VStreamError):
    """A watch that is empty, contradicts itself, or is one too many."""

"""Every error of the operator, in one tree.

OperatorError
├── SettingsError    the operator's own variables are wrong; ``problems`` are sentences for whoever installs it
├── SpecError        the resource asks for something that cannot be; ``problems`` are sentences for its author
└── KubeError        the API server did not do what it was asked
    ├── NotFound · Conflict
    ├── Forbidden · NamespaceTerminating
    ├── Invalid      it refused the object; the message is its own
    └── Unavailable  no answer, or 429 and 5xx: the same may succeed later, ``retry_after_s`` if it said when
"""

from collections.abc import Sequence


class OperatorError(Exception):
    """Base of all errors that this package raises on purpose."""


class SettingsError(OperatorError):
    """The operator cannot start with these variables; ``problems`` name variable, value and what is allowed."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class SpecError(OperatorError):
    """The resource cannot be carried out as it is; ``problems`` name field, value and what is allowed."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class KubeError(OperatorError):
    """The API server's answer was an error."""


class NotFound(KubeError):
    """There is no such object."""


class Conflict(KubeError):
    """The object exists already, or is not the one that was meant (uid, resourceVersion)."""


class Forbidden(KubeError):
    """The operator may not do this: its role lacks a verb, or a policy refuses."""


class NamespaceTerminating(Forbidden):
    """The namespace is being deleted: nothing new can be made in it, ever."""


class Invalid(KubeError):
    """The API server refused the object."""


class Unavailable(KubeError):
    """No answer, or one that asks to come back. ``soon``: the very same request may succeed in a moment."""

    def __init__(self, message: str, retry_after_s: float | None = None, *, soon: bool = True) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.soon = soon

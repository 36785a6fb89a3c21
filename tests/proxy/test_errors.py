"""What our errors say and carry."""

import pytest

from tinybird_proxy.errors import (
    BodyRefused,
    ConfigError,
    ConnectFailed,
    ConnectionBroken,
    Problem,
    ProxyError,
    ResponseTimeout,
    TokenFileError,
    UpstreamError,
)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError([]),
        TokenFileError("is empty"),
        BodyRefused(400, "row 1: is not valid UTF-8"),
        ConnectFailed("refused"),
        ConnectionBroken("reset"),
        ResponseTimeout("late"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_of_ours_can_be_caught_as_one(error: Exception) -> None:
    assert isinstance(error, ProxyError)


def test_a_configuration_error_lists_all_of_its_problems() -> None:
    error = ConfigError([Problem("PORT", "'x': must be a number"), Problem("HOST", "is set but empty")])
    assert [problem.variable for problem in error.problems] == ["PORT", "HOST"]
    assert str(error) == "PORT: 'x': must be a number; HOST: is set but empty"


def test_a_refused_body_carries_what_the_client_is_told() -> None:
    error = BodyRefused(413, "too large")
    assert (error.status, error.message, str(error)) == (413, "too large", "too large")


@pytest.mark.parametrize(
    ("kind", "ambiguous"),
    [(UpstreamError, False), (ConnectFailed, False), (ConnectionBroken, True), (ResponseTimeout, True)],
)
def test_an_attempt_without_a_reply_is_ambiguous_once_something_was_written(
    kind: type[UpstreamError], ambiguous: bool
) -> None:
    assert kind("x").ambiguous is ambiguous

"""Every error of the operator is one of its own, and says what is wrong."""

import inspect

from tinybird_proxy_operator import errors


def test_every_error_is_in_the_tree_and_in_its_drawing() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if kind.__module__ == errors.__name__:
            assert issubclass(kind, errors.OperatorError)
            assert name in (errors.__doc__ or "")


def test_a_spec_error_names_every_problem() -> None:
    error = errors.SpecError(["spec.a: is wrong", "spec.b: too"])
    assert error.problems == ("spec.a: is wrong", "spec.b: too")
    assert str(error) == "spec.a: is wrong; spec.b: too"


def test_a_settings_error_names_every_problem() -> None:
    assert str(errors.SettingsError(["A: is missing", "B: too"])) == "A: is missing; B: too"


def test_an_unavailable_api_server_may_say_when_to_come_back() -> None:
    assert errors.Unavailable("429", 3.0).retry_after_s == 3.0
    assert errors.Unavailable("no answer").retry_after_s is None

"""The types of problems: they are named after classes, and part of the HTTP contract."""

import inspect
import pkgutil
from importlib import import_module

import app
from app.platform.errors import DomainError, ServiceError
from app.platform.http.problems import problem_type_of

# A renamed class keeps the type that callers know, by `problem_type`.
TYPES = {
    "body-timeout",
    "body-too-large",
    "concurrent-changes",
    "conflict",
    "connection-pool-empty",
    "database-away",
    "database-limit",
    "database-out-of-date",
    "database-read-only",
    "domain-error",
    "email-taken",
    "empty-order",
    "idempotency-key-reused",
    "log-busy",
    "not-found",
    "not-yet-there",
    "precondition-required",
    "service-error",
    "transition-not-allowed",
    "unavailable",
    "unprocessable",
    "username-taken",
    "version-conflict",
}


def test_every_error_has_a_type_that_callers_know() -> None:
    names = [module.name for module in pkgutil.walk_packages(app.__path__, "app.")]
    modules = [import_module(name) for name in names if not name.endswith("__main__")]
    errors = {
        member
        for module in modules
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, ServiceError | DomainError)
    }
    types = {problem_type_of(error.__new__(error)) for error in errors}

    assert "urn:problem-type:database-away" in types
    assert types <= {f"urn:problem-type:{name}" for name in TYPES}

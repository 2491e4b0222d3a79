"""What contributors run: ``nox -s tests``, ``all-tests``, ``lint``, ``docs`` or ``benchmarks``.

Each session has its own virtual environment, which is reused; arguments after ``--`` are passed on.
"""

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default tests, about three minutes."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(name="all-tests")
def all_tests(session: nox.Session) -> None:
    """Run all tests that this machine can run, with branch coverage."""
    session.install("-e", ".[test,dev]")
    session.run("coverage", "run", "-m", "pytest", "--all", *session.posargs)
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check lint, format, types and the layers of the package."""
    session.install("-e", ".[test,dev]")
    session.run("pre-commit", "run", "--all-files", *session.posargs)
    session.run("lint-imports", "--no-cache")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Run the benchmarks, about a quarter of an hour."""
    session.install("-e", ".[test]")
    session.run("pytest", "benchmarks/", "--benchmark-only", *session.posargs)

"""The variants: every valid combination of the answers that decide which files are rendered.

Tests, docs/variants.md and this repository's workflow read it from here; it follows from copier.yml.

    python -m tests.matrix           write docs/variants.md
    python -m tests.matrix --json    the names of the codes, for a workflow
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from tests import rendering
from tests.rendering import ROOT, Answers

PAGE = ROOT / "docs" / "variants.md"

# Valid answers that are hard to quote in TOML, YAML, Python, Markdown and shells.
AWKWARD = {
    "project_name": "Ann's Café \N{EN DASH} №1 {beta} 100% #1 & <co>",
    "description": "It's “the” service: a & b, 100% $HOME `x` [y] {z} # \N{EN DASH} " + "é" * 40,
    "author_name": "Zoë O'Brien, Team #1: ops & dev",
    "author_email": "zoe.o'brien+ops@mail.example.co.uk",
    "service_name": "shop_orders-2",
}


@dataclass(frozen=True)
class Variant:
    """One combination of the answers that decide which files are rendered."""

    modules: tuple[str, ...] = ()
    sample_domain: bool = True
    ci: str = "github"
    label: str = ""
    others: Answers = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The name of its Python code, which variants that differ only in `ci` share."""
        return "-".join([*(self.modules or ["base"]), *([] if self.sample_domain else ["lean"])])

    @property
    def name(self) -> str:
        return "-".join(filter(None, [self.code, self.ci, self.label]))

    @property
    def answers(self) -> Answers:
        return {**deciding(self.modules, self.sample_domain, self.ci), **self.others}


def deciding(modules: tuple[str, ...], sample_domain: bool, ci: str) -> dict[str, object]:
    answers = {"modules": list(modules), "sample_domain": sample_domain, "ci": ci}
    return {name: answer for name, answer in answers.items() if name in questions()}


@cache
def questions() -> Mapping[str, Mapping[str, Any]]:
    return rendering.questions()


def choices(question: str) -> list[str]:
    """List the choices of a question that are on offer."""
    offered = questions()[question]["choices"].values()
    return [choice for choice in offered if isinstance(choice, str)]


def combinations() -> Iterator[Variant]:
    """Yield every combination, valid or not: the smallest first, with the sample domain first."""
    offered = choices("modules")
    sets = (itertools.combinations(offered, size) for size in range(len(offered) + 1))
    domains = [True, False] if "sample_domain" in questions() else [True]
    for modules in itertools.chain.from_iterable(sets):
        for sample_domain, ci in itertools.product(domains, choices("ci")):
            yield Variant(modules, sample_domain, ci)


def refusal(variant: Variant) -> str:
    """Return the message of the first validator that refuses the combination, or ""."""
    jinja = SandboxedEnvironment(undefined=StrictUndefined)
    known: dict[str, object] = {}
    for name, question in questions().items():
        if name in variant.answers:
            known[name] = variant.answers[name]
            output = jinja.from_string(question.get("validator", "")).render(known)
            if output.strip():
                return " ".join(output.split())
    return ""


@cache
def variants() -> list[Variant]:
    """List every valid combination."""
    return [variant for variant in combinations() if not refusal(variant)]


def codes() -> list[Variant]:
    """List one variant of each code."""
    return list({variant.code: variant for variant in reversed(variants())}.values())[::-1]


def ends() -> list[Variant]:
    """Return the smallest and the largest code with the sample domain."""
    with_sample = [variant for variant in codes() if variant.sample_domain]
    return [with_sample[0], with_sample[-1]]


def corners() -> list[Variant]:
    """List the smallest and the largest code, with and without the sample domain."""
    return [code for code in codes() if code.modules in {end.modules for end in ends()}]


def covered_by(code: Variant) -> list[str]:
    """List the names of the variants that have the Python code of `code`."""
    return [variant.name for variant in variants() if variant.code == code.code]


def awkward() -> Variant:
    """Return the largest variant, with answers that are valid and hard to quote."""
    return Variant(ends()[-1].modules, label="awkward", others=AWKWARD)


def named(name: str) -> list[Variant]:
    """Return the code of that name, or of the variant of that name. Raises ValueError."""
    found = [code for code in codes() if name in (code.code, *covered_by(code))]
    if not found:
        names = ", ".join(code.code for code in codes())
        raise ValueError(f"no variant is called {name}; there are: {names}, each also with its ci")
    return found


def page() -> str:
    """Return the text of docs/variants.md."""
    rows = "\n".join(f"| `{code.code}` | `{options(code)}` |" for code in codes())
    endings = ", ".join(f"`base-{ci}`" for ci in choices("ci"))
    asked = ", ".join(f"`{name}`" for name in deciding((), True, ""))
    refused = "\n".join(
        f"| {combination} | {reason} |" for combination, reason in refused_combinations().items()
    )
    return f"""\
# The variants

<!-- Written by `nox -s variants` from copier.yml: change that, not this page. -->

The answers to {asked} decide which files are rendered. They have
{len(variants())} valid combinations. Each of them is rendered in the tests, where nothing is left to
format, to lint or to fill in.

`ci` changes nothing that runs (a test compares the files), so there are {len(codes())} codes:

| code | answers |
|---|---|
{rows}

For each code mypy, the import contracts, the migrations (`alembic upgrade heads`, after which
`alembic check` finds nothing to add) and the service's own tests are run, on the oldest supported
Python; for the ends of the list on the newest, too. A run of all codes makes tests of the platform that
several codes share once, and starts `app dev` for the smallest and the largest codes, with and without
the example. `nox -s generated -- --variant NAME` makes all of them for one.

A variant is named after its code and its `ci`: {endings}.

## What is refused

| combination | what Copier says |
|---|---|
{refused}
"""


def options(code: Variant) -> str:
    """Return the options of `copier copy` for a code."""
    given = [f"-d modules='[{', '.join(code.modules)}]'"] if code.modules else []
    if not code.sample_domain:
        given.append("-d sample_domain=false")
    return " ".join(given) or "--defaults"


def refused_combinations() -> dict[str, str]:
    refused = {f"`{variant.code}`": refusal(variant) for variant in combinations()}
    return {code: reason for code, reason in refused.items() if reason}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/variants.md from copier.yml.")
    parser.add_argument("--json", action="store_true", help="print the names of the codes instead")
    if parser.parse_args().json:
        print(json.dumps([code.code for code in codes()]))
    else:
        PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())

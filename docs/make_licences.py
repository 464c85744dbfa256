"""Write docs/licences.md: the licences of everything that ``pip install lightning-nobp`` brings.

Run ``python docs/make_licences.py`` before a release, where the newest versions are installed.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parent / "licences.md"
START = "<!-- written by docs/make_licences.py -->\n"
PACKAGE = "lightning-nobp"
LONGEST = 60
"""Characters of a licence's name; what is longer is its whole text."""
PERMISSIVE = re.compile(r"0BSD|Apache|BSD|CC0|MIT|PSF|Python Software Foundation|Zlib|matplotlib")
RESTRICTED = re.compile(r"GPL|MPL|Mozilla|EPL|CDDL|NVIDIA|Proprietary")
GCC_LIBRARY = re.compile(r"(lib(?:gomp|gfortran|quadmath|stdc\+\+|gcc_s))[-.].*so")


def normal(name: str) -> str:
    """A name as package indices compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(package: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    """What this package needs on this machine with these extras."""
    for text in package.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras | {""}):
            yield requirement


def closure() -> dict[str, set[str]]:
    """The packages that an install without extras brings, each with those that ask for it."""
    wanted, asked_by = [(PACKAGE, frozenset[str]())], defaultdict[str, set[str]](set)
    seen = set(wanted)
    while wanted:
        name, extras = wanted.pop()
        for requirement in requirements(distribution(name), extras):
            needed = normal(requirement.name)
            if needed != name:
                asked_by[needed].add(name)
            if (step := (needed, frozenset(requirement.extras))) not in seen:
                seen.add(step)
                wanted.append(step)
    return dict(asked_by)


def licence(package: Distribution) -> str:
    """The licence as the package's own metadata has it: expression, field or classifier."""
    metadata = package.metadata
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    field = metadata.get("License") or ""
    short = field if field != "UNKNOWN" and len(field) <= LONGEST and "\n" not in field else ""
    return metadata.get("License-Expression") or short or ", ".join(classifiers) or "not stated"


def gcc_libraries(package: Distribution) -> list[str]:
    """Run-time libraries of GCC that lie in the package's wheel."""
    return sorted({match[1] for path in package.files or [] if (match := GCC_LIBRARY.match(path.name))})


def restricted(name: str) -> bool:
    """Whether a licence asks for more than to be named."""
    return bool(RESTRICTED.search(name)) or not PERMISSIVE.search(name)


def rows() -> list[str]:
    """The table, the packages of pyproject.toml first."""
    lines = ["| package | version | licence | asked for by |", "| --- | --- | --- | --- |"]
    asked_by = closure()
    for name in sorted(asked_by, key=lambda n: (PACKAGE not in asked_by[n], n)):
        package = distribution(name)
        notes = f"; holds {', '.join(libraries)}" if (libraries := gcc_libraries(package)) else ""
        found = licence(package)
        shown = f"**{found}**" if restricted(found) else found
        lines.append(f"| {name} | {package.version} | {shown}{notes} | {', '.join(sorted(asked_by[name]))} |")
    return lines


if __name__ == "__main__":
    before, _, _ = PAGE.read_text().partition(START)
    PAGE.write_text(before + START + "\n" + "\n".join(rows()) + "\n")

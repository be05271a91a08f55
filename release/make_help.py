"""Print the variables of a target of the Makefile: `make help-TARGET`.

Runs before the set-up, so it imports the standard library only. The variables are found in the
recipe; their defaults and the comments `#: …` above them are read from the Makefile.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

MAKEFILE = Path(__file__).parent.parent / "Makefile"
_DEFINITION = re.compile(r"(?:export )?(\w+) *[:?]?= ?(.*)")
_RULE = re.compile(r"(\S+): *([^#=]*)(?:##\+? (.*))?")
_REFERENCE = re.compile(r"\$\((?:call option,|call )?(\w+)")
# A variable such as DOCKER is read from the environment, so no recipe names it.
_USED_BY = "; used by: "


@dataclass(frozen=True)
class Variable:
    """A variable of the Makefile."""

    name: str
    value: str
    meaning: str
    used_by: tuple[str, ...]  # targets whose programs read it from the environment


@dataclass(frozen=True)
class Target:
    """A target of the Makefile."""

    prerequisites: tuple[str, ...]
    help: str
    recipe: str


class Makefile:
    """The variables and targets of a Makefile."""

    def __init__(self, text: str) -> None:
        self.variables: dict[str, Variable] = {}
        self.targets: dict[str, Target] = {}
        meaning, target = "", ""
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("\t"):
                self._add_to_recipe(target, line)
            elif definition := _DEFINITION.fullmatch(line):
                self._add_variable(definition[1], definition[2], meaning)
            elif (rule := _RULE.fullmatch(line)) and not line.startswith((".PHONY", "#")):
                target = rule[1]
                self.targets[target] = Target(tuple(rule[2].split()), rule[3] or "", "")
            meaning = line.removeprefix("#: ") if line.startswith("#: ") else ""

    def _add_variable(self, name: str, value: str, meaning: str) -> None:
        text, _, targets = meaning.partition(_USED_BY)
        self.variables[name] = Variable(name, value, text, tuple(targets.split(", ")))

    def _add_to_recipe(self, target: str, line: str) -> None:
        rule = self.targets[target]
        self.targets[target] = Target(rule.prerequisites, rule.help, f"{rule.recipe}{line}\n")

    def used_by(self, name: str) -> list[Variable]:
        """Return the documented variables that a target uses, in the order of the Makefile."""
        names = self._references(self._recipe(name))
        return [
            variable
            for variable in self.variables.values()
            if variable.meaning and (variable.name in names or name in variable.used_by)
        ]

    def _recipe(self, name: str) -> str:
        """Return the recipe; `setup` has none, so its prerequisite's recipe counts."""
        target = self.targets.get(name)
        if target is None:
            return ""
        return target.recipe or "".join(map(self._recipe, target.prerequisites))

    def _references(self, text: str, seen: frozenset[str] = frozenset()) -> set[str]:
        """Return the variables in a text, and those in the values of these variables."""
        names = set(_REFERENCE.findall(text)) & self.variables.keys() - seen
        values = (self.variables[name].value for name in sorted(names))
        nested = (self._references(value, seen | names) for value in values)
        return names.union(*nested)

    def default(self, variable: Variable) -> str:
        """Return the default with its references expanded; "" if a command computes it."""
        if "$(shell" in variable.value:
            return ""
        # LOAD_IMAGE quotes the name of the cluster with $(subst …).
        value = re.sub(r"\$\(subst [^$]*(\$\(\w+\))\)", r"\1", variable.value)
        return re.sub(r"\$\((\w+)\)", lambda name: self.variables[name[1]].value, value)

    def describe(self, name: str) -> str:
        """Return the description of a target and of its variables."""
        lines = [f"make {name}: {self.targets[name].help}"]
        for variable in self.used_by(name):
            lines += [f"  {variable.name}={self.default(variable)}", f"      {variable.meaning}"]
        return "\n".join(lines)


def main(name: str) -> None:
    """Print the help of a target. Exits with a message if the target has no help."""
    makefile = Makefile(MAKEFILE.read_text(encoding="utf-8"))
    if name not in makefile.targets or not makefile.targets[name].help:
        sys.exit(f"make help-{name}: expected a target, got {name}. `make help-all` lists them.")
    print(makefile.describe(name))


if __name__ == "__main__":
    main(sys.argv[1])

"""The report of a check: findings with a level, readable as text and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from constrained_rl.errors import InputError

Level = Literal["ok", "warning", "error"]
_COLORS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of a report."""

    level: Level
    check: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """What `check_cmdp` found; `print(report)` is readable, so is rich's print."""

    subject: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No errors; warnings may be there."""
        return all(finding.level != "error" for finding in self.findings)

    def raise_for_errors(self) -> None:
        """Raise one `InputError` with all errors, if there are any."""
        if not self.ok:
            errors = [finding for finding in self.findings if finding.level == "error"]
            lines = [f"  {line(finding)}" for finding in errors]
            raise InputError(
                f"{self.subject}: {len(errors)} error(s), expected none\n" + "\n".join(lines)
            )

    def __str__(self) -> str:
        """One line per finding, advice below it."""
        return "\n".join([self.subject, *(f"  {f.level:8}{line(f)}" for f in self.findings)])

    def __rich__(self) -> Table:
        """A colored table."""
        table = Table("", "check", "found", title=self.subject)
        for f in self.findings:
            advice = f"\n→ {f.advice}" if f.advice else ""
            table.add_row(Text(f.level, _COLORS[f.level]), Text(f.check), Text(f.found + advice))
        return table


def line(finding: Finding) -> str:
    """`check: found → advice`."""
    advice = f"\n          → {finding.advice}" if finding.advice else ""
    return f"{finding.check}: {finding.found}{advice}"

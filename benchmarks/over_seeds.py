"""Means over seeds as text, for the tables of benchmarks."""

from constrained_rl.statistics import mean_interval


def interval(values: list[float], digits: int) -> str:
    """Mean over seeds with its 95 % interval; one seed alone has none."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    found = mean_interval(values)
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"

"""All bad inputs, by area."""

from tests.bad_input import (
    of_environments,
    of_language,
    of_preferences,
    of_runs,
    of_scores,
    of_settings,
)

AREAS = {
    "Settings and options": of_settings.CASES,
    "Environments and costs": of_environments.CASES,
    "Runs and files": of_runs.CASES,
    "Preference data": of_preferences.CASES,
    "Language models": of_language.CASES,
    "Score models": of_scores.CASES,
}
CASES = tuple(case for cases in AREAS.values() for case in cases)

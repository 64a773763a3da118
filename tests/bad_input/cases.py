"""All bad inputs, by area."""

from tests.bad_input import (
    of_certificates,
    of_environments,
    of_fits,
    of_folders,
    of_language,
    of_preferences,
    of_problems,
    of_returns,
    of_rounds_and_arenas,
    of_runs,
    of_scores,
    of_services,
    of_settings,
    of_training,
)

AREAS = {
    "Settings and options": of_settings.CASES,
    "Environments and costs": of_environments.CASES + of_returns.CASES,
    "Finite problems": of_problems.CASES,
    "Runs and files": of_runs.CASES,
    "Certificates": of_certificates.CASES,
    "Preference data": of_preferences.CASES,
    "Language models": of_language.CASES,
    "Score models": of_scores.CASES,
    "Training a model of one's own": of_training.CASES,
    "Fitting": of_fits.CASES,
    "Rounds, evaluation, chat and services": of_rounds_and_arenas.CASES,
    "While training": of_services.CASES,
    "Folders of language models": of_folders.CASES,
}
CASES = tuple(case for cases in AREAS.values() for case in cases)

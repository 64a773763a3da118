"""Which registered environment does an id mean? With near names for one that there is not."""

import difflib
import importlib

import gymnasium

from constrained_rl.errors import InputError
from constrained_rl.faults import where_raised


def find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The registered spec; `module:Name-v0` imports the module first."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever stands in it
            raise InputError(
                f"{env_id}: module {module} cannot be imported: {where_raised(error)}"
            ) from error
    spec = gymnasium.registry.get(name)
    if spec is None:
        near = _near_names(name) or [env_id for env_id in gymnasium.registry if _is_ours(env_id)]
        raise InputError(
            f"no environment is registered as {name!r}; near names: {', '.join(near)}. For an "
            "environment of another package write `package:Name-v0`, which imports it first"
        )
    return spec


def _near_names(name: str) -> list[str]:
    """Registered ids that look like `name`, ours first; namespaces and case do not count."""
    theirs_first = sorted(gymnasium.registry, key=_is_ours)  # of two equal tails, ours remains
    by_tail = {env_id.split("/")[-1].lower(): env_id for env_id in theirs_first}
    tails = difflib.get_close_matches(name.split("/")[-1].lower(), by_tail, n=5, cutoff=0.6)
    return sorted((by_tail[tail] for tail in tails), key=lambda env_id: not _is_ours(env_id))


def _is_ours(env_id: str) -> bool:
    return env_id.startswith("constrained_rl/")

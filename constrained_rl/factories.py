"""What does a function make that is given in the place of an environment?"""

import inspect
from collections.abc import Callable

import gymnasium

from constrained_rl.costs import AnyEnv, function_name
from constrained_rl.errors import InputError
from constrained_rl.processes import LeavesSignals
from constrained_rl.returned import SubEnvironment

Factory = Callable[[], AnyEnv]


class SubEnvironmentMaker:
    """A factory of sub-environments; a class, so that processes can be sent it."""

    def __init__(self, factory: Factory, prepare: LeavesSignals) -> None:
        self.factory, self.prepare = factory, prepare

    def __call__(self) -> AnyEnv:
        """Make one."""
        return SubEnvironment(self.prepare(made_by(self.factory)))


def made_by(factory: Factory) -> AnyEnv:
    """The environment that a function makes; `InputError` if it is none."""
    needed = _missing_arguments(factory)
    if needed is not None:
        raise InputError(
            f"the environment factory {function_name(factory)} needs arguments ({needed}), "
            "expected a function without any: lambda: Mine(…)"
        )
    env = factory()
    if not isinstance(env, gymnasium.Env):
        raise InputError(
            f"the environment factory {function_name(factory)} returned a {type(env).__name__}, "
            "expected a gymnasium.Env. A vector environment is passed as it is, without a function "
            "around it; an environment whose step returns six values is wrapped: FromSixTuple(env)"
        )
    try:
        spaces = env.observation_space, env.action_space
    except AttributeError as error:
        raise InputError(
            f"the environment {function_name(factory)} has no observation_space or action_space "
            f"({error}); set both in its constructor to spaces of gymnasium.spaces"
        ) from error
    if not all(isinstance(space, gymnasium.Space) for space in spaces):
        raise InputError(
            f"the spaces of {function_name(factory)} are {spaces}, no gymnasium.spaces"
        )
    return env


def _missing_arguments(factory: Factory) -> str | None:
    """What a function lacks when it is called without arguments."""
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        return str(error)
    except ValueError:  # some of C have no signature
        pass
    return None

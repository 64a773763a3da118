"""What is every section of a configuration made of? Its base, and the types of its numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Limit = Finite | tuple[Finite, ...] | dict[str, Finite]
"""One for all costs, one each in their order, or one each by name; see `assembly.one_of_each`."""
Schedule = Literal["constant", "linear", "quadratic", "cosine"]


def _fits_generators(seed: int) -> int:
    if seed >= 2**63:
        raise ValueError(f"found {seed}; give a seed below 2^63, which random generators can hold")
    return seed


def _is_a_numbered_gpu(name: str) -> str:
    number = name.removeprefix("cuda:")
    if number == name or not number.isdecimal():
        raise ValueError(f"found {name!r}, expected a GPU by its number, such as 'cuda:0'")
    return name


Seed = Annotated[int, Field(ge=0), AfterValidator(_fits_generators)]

NumberedGPU = Annotated[
    str, AfterValidator(_is_a_numbered_gpu), Field(json_schema_extra={"format": "cuda:N"})
]
Device = Literal["auto", "cpu", "cuda", "mps"] | NumberedGPU
"""Where networks live, see `devices.choose_device`."""


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, docstrings are descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def limits_in(limit: Limit) -> tuple[float, ...]:
    """The numbers of a setting of limits, in the order in which they stand there."""
    if isinstance(limit, dict):
        return tuple(limit.values())
    return limit if isinstance(limit, tuple) else (limit,)

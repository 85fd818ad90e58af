"""The types of the settings: what text, numbers and shares in params.yaml may be."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from m3lib.errors import shown


def require_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{shown(text)} holds a character that can't be printed")
    return text


Text = Annotated[str, Field(strict=True), AfterValidator(require_printable)]
Flag = Annotated[bool, Field(strict=True)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


def integer(low: int, high: int = 2**63 - 1) -> Any:
    return Annotated[int, Field(strict=True, ge=low, le=high)]


def number(low: float, high: float) -> Any:
    return Annotated[float, Field(strict=True, ge=low, le=high)]


Count = integer(1)

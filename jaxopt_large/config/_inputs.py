"""What a configuration may say of data and models, and the numbers in all of it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from .._tables import bytes_in


class Group(BaseModel):
    """A group of settings: no other keys, no conversions, no numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


_BYTES, _PIXELS, _DIGITS = 256, 64, 10  # what the data has
_LARGEST = 2**31 - 1  # shapes and steps are counted in 32 bits
Count = Annotated[int, Field(ge=1, le=_LARGEST)]
Natural = Annotated[int, Field(ge=0, le=_LARGEST)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # JAX takes the rest modulo 2^32, two seeds for one
Bytes = Annotated[int, BeforeValidator(lambda x: _bytes(x)), Field(ge=0)]  # also as "16GiB"
FLOAT32 = 3.4e38  # what it holds
Number = Annotated[float, Field(ge=-FLOAT32, le=FLOAT32)]
Rate = Annotated[float, Field(ge=0, le=FLOAT32)]


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = bytes_in(value)
    if found is None:
        raise ValueError("write it like 16GiB")
    return found


# --- data ---------------------------------------------------------------------------------------------


class StdlibData(Group):
    """The source of Python's standard library, as bytes."""

    kind: Literal["stdlib"]
    context: Count = 128
    validation_windows: Count = 256


class TextData(Group):
    """A folder of text files, as bytes; as long as it has no name there is nothing to train on."""

    kind: Literal["text"]
    path: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")] | None = None
    context: Count = 128
    validation_windows: Count = 256


class TokensData(Group):
    """Files of token ids, as tokenizing tools write them; they may be larger than memory."""

    kind: Literal["tokens"]
    path: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")] | None = None
    context: Count = 128
    validation_windows: Count = 256
    dtype: Literal["uint8", "uint16", "uint32", "int16", "int32", "int64"] = "uint16"  # of .bin files
    validation: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")] | None = None


class DigitsData(Group):
    """scikit-learn's handwritten digits."""

    kind: Literal["digits"]


Data = Annotated[StdlibData | TextData | TokensData | DigitsData, Field(discriminator="kind")]


# --- model --------------------------------------------------------------------------------------------


class TransformerModel(Group):
    """A decoder-only language model."""

    kind: Literal["transformer"]
    vocabulary: Count = 256
    layers: Count
    width: Count
    heads: Count
    kv_heads: Count | None = None
    mlp_width: Count | None = None
    activation: Literal["relu_squared", "swiglu"] = "relu_squared"
    rotary_base: Annotated[float, Field(gt=1, le=FLOAT32)] = 1e4
    tied: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool | Literal["dots"] = False

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerModel":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not divisible by twice the {self.heads} heads")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is not divisible by the {self.kv_heads} kv_heads")
        return self


class MlpModel(Group):
    """A perceptron that classifies."""

    kind: Literal["mlp"]
    inputs: Count = 64
    hidden: list[Count] = [128]
    classes: Count = 10


class BertModel(Group):
    """BERT's parameters, for planning."""

    kind: Literal["bert"]
    vocabulary: Count
    layers: Count
    width: Count
    mlp_width: Count
    positions: Count
    types: Count = 2


class T5Model(Group):
    """T5's parameters, for planning."""

    kind: Literal["t5"]
    vocabulary: Count
    layers: Count
    width: Count
    heads: Count
    head_width: Count
    mlp_width: Count
    buckets: Count = 32


class MoeModel(Group):
    """A mixture of experts' parameters, for planning."""

    kind: Literal["moe"]
    vocabulary: Count
    layers: Count
    width: Count
    heads: Count
    kv_heads: Count
    mlp_width: Count
    experts: Count


Model = Annotated[TransformerModel | MlpModel | BertModel | T5Model | MoeModel, Field(discriminator="kind")]


def misfits(data: Data, model: Model) -> str:
    """What of a model does not fit the data, of which JAX says little, later, or nothing at all."""
    kinds = (data.kind == "digits", model.kind == "mlp")
    if model.kind in ("transformer", "mlp") and kinds[0] != kinds[1]:
        return f"model.kind: {model.kind} does not fit the data, {data.kind}"
    if model.kind == "transformer" and data.kind != "tokens" and model.vocabulary < _BYTES:
        return f"model.vocabulary: {model.vocabulary} is too small; bytes are {_BYTES}"
    if model.kind == "mlp" and model.inputs != _PIXELS:
        return f"model.inputs: {model.inputs} is not the number of pixels, {_PIXELS}"
    if model.kind == "mlp" and model.classes < _DIGITS:
        return f"model.classes: {model.classes} is too small; there are {_DIGITS} digits"
    return ""

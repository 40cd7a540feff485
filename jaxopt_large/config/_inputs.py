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


_Path = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]


class TextData(Group):
    """A folder of text files, as bytes or as ids; as long as it has no name there is nothing to train on."""

    kind: Literal["text"]
    path: _Path | None = None
    context: Count = 128
    validation_windows: Count = 256
    tokenizer: _Path | None = None  # a file of the library tokenizers; null: bytes are the ids
    end_of_text: Natural | Annotated[str, Field(min_length=1)] | None = (
        None  # an id, or the tokenizer's token
    )
    pack: bool = False  # examples are whole files, as many as fit

    @model_validator(mode="after")
    def _documents_end(self) -> "TextData":
        if self.tokenizer is None and isinstance(self.end_of_text, str):
            raise ValueError(f"end_of_text: {self.end_of_text!r} is a token, and there is no tokenizer")
        if self.pack and self.tokenizer is None and self.end_of_text is None:
            raise ValueError("pack: documents need an end_of_text, for bytes an id such as 256")
        return self


class TokensData(Group):
    """Files of token ids, as tokenizing tools write them; they may be larger than memory."""

    kind: Literal["tokens"]
    path: _Path | None = None
    context: Count = 128
    validation_windows: Count = 256
    dtype: Literal["uint8", "uint16", "uint32", "int16", "int32", "int64"] = "uint16"  # of .bin and records
    validation: _Path | None = None
    end_of_text: Natural | None = None
    pack: bool = False  # examples are whole documents, as many as fit

    @model_validator(mode="after")
    def _documents_end(self) -> "TokensData":
        if self.pack and self.end_of_text is None:
            raise ValueError("pack: documents need an end_of_text, the id that follows each")
        return self


class DigitsData(Group):
    """scikit-learn's handwritten digits."""

    kind: Literal["digits"]


class MixtureData(Group):
    """Several data sets, each with its share of the examples."""

    kind: Literal["mixture"]
    parts: Annotated[
        dict[str, Annotated[StdlibData | TextData | TokensData, Field(discriminator="kind")]],
        Field(min_length=1),
    ]
    weights: dict[str, Annotated[float, Field(ge=1e-6, le=1e6)]]

    @model_validator(mode="after")
    def _parts_fit(self) -> "MixtureData":
        missing, more = self.parts.keys() - self.weights.keys(), self.weights.keys() - self.parts.keys()
        if missing:
            raise ValueError(f"weights: there is none for {', '.join(sorted(missing))}")
        if more:
            there = ", ".join(self.parts)
            raise ValueError(f"weights: there is no part {', '.join(sorted(more))}; parts are {there}")
        contexts = {name: part.context for name, part in self.parts.items()}
        if len(set(contexts.values())) > 1:
            told = ", ".join(f"{name} has {context}" for name, context in contexts.items())
            raise ValueError(f"parts: all need the same context; {told}")
        return self

    @property
    def context(self) -> int:
        """Of every part."""
        return next(iter(self.parts.values())).context


Data = Annotated[StdlibData | TextData | TokensData | MixtureData | DigitsData, Field(discriminator="kind")]


def parts_of(data: Data) -> dict[str, Any]:
    """The data sets in a `data` group, by where they stand."""
    if isinstance(data, MixtureData):
        return {f"data.parts.{name}": part for name, part in data.parts.items()}
    return {"data": data}


def is_masked(data: Data) -> bool:
    """Do batches say which of their targets count?"""
    return any(getattr(part, "pack", False) for part in parts_of(data).values())


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
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
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
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


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
    if model.kind == "transformer":
        for where, part in parts_of(data).items():
            misfit = _misfit_of_ids(where, part, model.vocabulary)
            if misfit:
                return misfit
    if model.kind == "mlp" and model.inputs != _PIXELS:
        return f"model.inputs: {model.inputs} is not the number of pixels, {_PIXELS}"
    if model.kind == "mlp" and model.classes < _DIGITS:
        return f"model.classes: {model.classes} is too small; there are {_DIGITS} digits"
    return ""


def _misfit_of_ids(where: str, data: Any, vocabulary: int) -> str:
    """What of a data set's ids is known before it is read."""
    are_bytes = data.kind == "stdlib" or (data.kind == "text" and data.tokenizer is None)
    if are_bytes and vocabulary < _BYTES:
        return f"model.vocabulary: {vocabulary} is too small; bytes are {_BYTES}"
    end = getattr(data, "end_of_text", None)
    if isinstance(end, int) and end >= vocabulary:
        return f"model.vocabulary: {vocabulary} is too small; {where}.end_of_text is {end}"
    return ""

"""Where a model's arrays are: the model names dimensions, who runs it knows what they are divided over."""

from typing import Protocol

from jaxtyping import Array


class Place(Protocol):
    """What who runs a model says of its arrays.

    Attributes:
      fused: can attention be one kernel there?
    """

    fused: bool = False

    def activation(self, x: Array, *dimensions: str | None) -> Array:
        """An activation, in its place.

        Args:
          x: the activation.
          *dimensions: a name for each of its dimensions, None for one that is never divided: "batch";
            "length" between layers; "heads", "hidden" and "vocabulary" inside them.
        """

    def weight(self, x: Array, path: str) -> Array:
        """A parameter in the place where it is used: all of what the activations there need of it.

        Args:
          x: the parameter, or one layer of it.
          path: of the whole parameter.
        """


class Anywhere(Place):
    """Says nothing: one device, or a compiler that decides."""

    def activation(self, x: Array, *dimensions: str | None) -> Array:
        del dimensions
        return x

    def weight(self, x: Array, path: str) -> Array:
        del path
        return x


ANYWHERE = Anywhere()

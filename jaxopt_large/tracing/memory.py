"""What is alive while the equations of a function run one after another."""

from collections.abc import Mapping, Sequence
from typing import Any

from .alive import Alive
from .calls import ByWindow, meaning_of
from .inlined import Inlined
from .layouts import Layout
from .nested import Nested
from .primitives import known

_FAST = 2**25  # bytes: what is smaller is often not written to memory, of chips of which that is not known


class Memory:
    """What is alive while equations run one after another.

    What works element by element is fused with what needs it: its operands live until then. It has a
    buffer of its own only if something takes it as an array: a loop, a collective, a result.

    Args:
      jaxpr: the function.
      walk: who walks through it.
      before: what is made before the loops that the function stands in, and held until they end.
      in_loop: does it stand in a loop?
      donated: are its results made in the place of what it is given?
    """

    def __init__(self, jaxpr: Inlined, walk: Nested, before: set[Any], *, in_loop: bool, donated: bool):
        self._walk, self._before, self._donated = walk, before, donated
        self.peak, self._now = Alive(), Alive()
        self._roots: dict[Any, frozenset[Any]] = {}
        self._views: dict[Any, Any] = {}  # what a variable is, named otherwise
        self._sizes: dict[Any, Alive] = {}
        self._outputs = {a for a in jaxpr.outvars if not hasattr(a, "val")}
        self._given = {*jaxpr.invars, *jaxpr.constants}
        self._lent = set(jaxpr.invars) if in_loop else set()
        self._taken = set(self._outputs)  # as arrays
        for eqn in jaxpr.eqns:
            if not _is_fused(eqn) and not _takes_fused(eqn):
                self._taken |= {a for a in eqn.invars if not hasattr(a, "val")}
        self._last: dict[Any, int] = {}
        for place, eqn in enumerate(jaxpr.eqns):
            roots = (
                frozenset().union(*(self._roots_of(a) for a in eqn.invars if not hasattr(a, "val")))
                if eqn.invars
                else frozenset()
            )
            if _is_view(eqn) and not hasattr(eqn.invars[0], "val"):
                self._views |= dict.fromkeys(eqn.outvars, self._views.get(eqn.invars[0], eqn.invars[0]))
            for v in eqn.outvars:
                own = not _is_fused(eqn) or (v in self._taken and not _is_view(eqn))
                self._roots[v] = frozenset({v}) if own else roots
                if _may_send(eqn):  # what it comes from may be what it is
                    self._roots[v] |= roots | {v}
            if not _is_fused(eqn) or any(v in self._taken for v in eqn.outvars):
                for r in roots:
                    self._last[r] = place
        for a in self._outputs:
            for r in self._roots_of(a):
                self._last[r] = len(jaxpr.eqns)
        if in_loop:
            self._hold_for_late_products(jaxpr)
        self._ends: dict[int, list[Any]] = {}
        for v, place in self._last.items():
            self._ends.setdefault(place, []).append(v)

    def _hold_for_late_products(self, jaxpr: Inlined) -> None:
        """Products for results alone, as gradients of weights are, come last: their operands live until then.

        So compilers have something to compute while the arrays of other products are on their way.
        """
        awaited: set[Any] = set()
        for eqn in reversed(jaxpr.eqns):
            if not _is_fused(eqn) or any(v in awaited for v in eqn.outvars):
                awaited |= {a for a in eqn.invars if not hasattr(a, "val")}
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general" and eqn.outvars[0] not in awaited:
                for a in eqn.invars:
                    for r in self._roots_of(a) if not hasattr(a, "val") else ():
                        self._last[r] = len(jaxpr.eqns)

    def _roots_of(self, v: Any) -> frozenset[Any]:
        return self._roots.get(v, frozenset({v}) if v in self._given else frozenset())

    def step(
        self, place: int, eqn: Any, layouts: Mapping[Any, Layout], inside: Alive, rounds: int, *, sends: bool
    ) -> None:
        """One equation: `inside` is what it needs besides operands and results."""
        walk = self._walk
        own = [v for v in eqn.outvars if v in self._roots[v] and (sends or not _may_send(eqn))]
        made = {
            v: walk.bytes(walk.sent_as(v) if sends else v.aval, layouts[v].dims)
            for v in own
            if v in layouts and not layouts[v].free
        }
        walk.sent_narrow |= {v for v in made if sends and v in walk.narrow}
        for v in (v for v in eqn.outvars if v in self._before):
            size = made.pop(v, 0) or self._made_before(eqn, v, layouts)
            if v not in walk.constants and not walk.quiet:
                walk.held[self._name(eqn, v)] = size
        if self._donated:
            inside -= Alive(min(inside.large, sum(made.pop(v) for v in list(made) if v in self._outputs)))
        if not walk.scatters and eqn.primitive.name == "dot_general":  # CPUs copy slices of stacks for it
            taken = {self._views.get(a, a) for a in eqn.invars if not hasattr(a, "val")}
            slices = [v for v in taken if v in walk.slices and v not in self._sizes]
            made |= {v: walk.bytes(v.aval, layouts[v].dims) for v in slices}
        ended = [v for v in self._ends.get(place, ()) if v in self._sizes]
        given_up = [v for v in ended if v in _in_place(eqn)]
        self._free(given_up)
        over = [v for v in self._ends.get(place, ()) if v in self._lent and _is_fused(eqn)]
        for v in made:  # in the place of what the loop was at
            same = next(
                (x for x in over if x.aval.shape == v.aval.shape and x.aval.dtype == v.aval.dtype), None
            )
            if same is not None and v in self._outputs:
                over.remove(same)
                made[v] = 0
        if eqn.primitive.name in ("shard_map", "cond"):  # whose functions make the results where they are
            self._is_at(self._now + inside)
            inside = Alive()
        new = {v: walk.placed(n, is_temporary=v not in self._outputs) for v, n in made.items()}
        self._now = sum(new.values(), self._now)
        self._sizes |= new
        # loops have the fast memory for themselves
        around = Alive(sum(self._now)) if eqn.primitive.name in ("scan", "while") else self._now
        self._is_at(around + inside)
        self._free([v for v in ended if v not in given_up])
        self._free([v for v in made if v not in self._last])
        if not walk.quiet:  # written, and read again
            walk.costs.traffic += 2 * rounds * sum(n for n in made.values() if n > (walk.fast or _FAST))

    def _made_before(self, eqn: Any, v: Any, layouts: Mapping[Any, Layout]) -> int:
        """Bytes of what works element by element on what a loop is given, if it is not larger than that."""
        walk = self._walk
        given = [a for a in eqn.invars if not hasattr(a, "val")]
        if not _is_fused(eqn) or _is_view(eqn) or _may_send(eqn):
            return 0
        if any(walk.origin(a) in walk.sent_narrow for a in given):
            return 0  # it is what it is made
        size = walk.bytes(v.aval, layouts[v].dims)
        return size if size <= sum(walk.bytes(a.aval, layouts[a].dims) for a in given) else 0

    def _name(self, eqn: Any, v: Any) -> Any:
        """The same for what is the same: compilers make it once."""
        walk = self._walk
        if eqn.primitive.name == "convert_element_type" and not hasattr(eqn.invars[0], "val"):
            given = self._views.get(eqn.invars[0], eqn.invars[0])
            outside = walk.origin(given)
            return "convert", str(v.aval.dtype), () if outside is not given else walk.path, outside
        return walk.path, v

    def _is_at(self, moment: Alive) -> None:
        self.peak = max(self.peak, moment, key=lambda x: x.fullness(self._walk.fast))

    def _free(self, variables: Sequence[Any]) -> None:
        for v in variables:
            self._now -= self._sizes.pop(v, Alive())


def _in_place(eqn: Any) -> list[Any]:
    """The operands in whose place results may come."""
    name, p = eqn.primitive.name, eqn.params
    if name == "scan":
        given = eqn.invars[p["num_consts"] : p["num_consts"] + p["num_carry"]]
    elif name == "while":
        given = eqn.invars[p["cond_nconsts"] + p["body_nconsts"] :]
    elif name in ("dynamic_update_slice", "scatter-add"):
        given = eqn.invars[:1]
    else:
        given = eqn.invars if _is_fused(eqn) else []
    return [a for a in given if not hasattr(a, "val")]


def _may_send(eqn: Any) -> bool:
    return eqn.primitive.name in ("sharding_constraint", "reshard")


def _is_view(eqn: Any) -> bool:
    """Is the result the operand, named otherwise?"""
    row = known(eqn)
    return row.handed or (row.moves and eqn.primitive.name not in ("broadcast_in_dim", "device_put"))


def _is_fused(eqn: Any) -> bool:
    row = known(eqn)
    if isinstance(meaning_of(eqn), ByWindow):  # of blocks: stacks are worked on layer by layer
        return True
    if eqn.primitive.name == "scatter-add":  # one element of each row: compilers compare instead
        numbers = eqn.params["dimension_numbers"]
        return bool(getattr(numbers, "operand_batching_dims", ())) and not numbers.update_window_dims
    return (
        row.element or row.moves or row.handed or row.typing or eqn.primitive.name == "iota"
    ) and not row.call


def _takes_fused(eqn: Any) -> bool:
    """Does it read what is computed element by element without a buffer?"""
    name = eqn.primitive.name
    return name in ("dot_general", "conv_general_dilated") or name.startswith(
        ("reduce_", "arg", "ragged_dot")
    )

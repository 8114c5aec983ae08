"""Every method, one line each. Adding one is its file and a line here; other packages bring theirs as entry points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, MutableMapping

from nap_bench.methods.base import Method, Phase, Stack
from nap_bench.methods.batch_norm import BatchNorm
from nap_bench.methods.continual_backprop import ContinualBackprop
from nap_bench.methods.crelu import CReLU
from nap_bench.methods.dash import DASH
from nap_bench.methods.full_reset import FullReset
from nap_bench.methods.group_norm import GroupNorm
from nap_bench.methods.hare_tortoise import HareTortoise
from nap_bench.methods.hyperspherical import Hyperspherical
from nap_bench.methods.implicit_schedule import ImplicitSchedule
from nap_bench.methods.infer import InFeR
from nap_bench.methods.l2 import L2
from nap_bench.methods.layer_norm import LayerNorm
from nap_bench.methods.layer_reset import LayerReset
from nap_bench.methods.leaky_relu import LeakyReLU
from nap_bench.methods.nap import NaP
from nap_bench.methods.noisy_updates import NoisyUpdates
from nap_bench.methods.optimizer_reset import OptimizerReset
from nap_bench.methods.parseval import Parseval
from nap_bench.methods.plasticity_injection import PlasticityInjection
from nap_bench.methods.redo import ReDo
from nap_bench.methods.regenerative import Regenerative
from nap_bench.methods.regrama import ReGraMa
from nap_bench.methods.rms_norm import RMSNorm
from nap_bench.methods.shrink_perturb import ShrinkPerturb
from nap_bench.methods.snr import SNR
from nap_bench.methods.spectral import Spectral
from nap_bench.methods.upgd import UPGD
from nap_bench.methods.weight_clipping import WeightClipping
from nap_bench.methods.weight_decay import WeightDecay
from nap_bench.methods.weight_norm import WeightNorm
from nap_bench.spec import Part, nearest

GROUP = "nap_bench.methods"
"""Entry points of other packages: the method's name = its class."""


class Registry(MutableMapping[str, type[Method]]):
    """Name -> method: the suite's own, and those of installed packages, which are imported when a method is first asked for."""

    def __init__(self, own: Iterable[type[Method]]):
        self._own = {method.name: method for method in own}
        self._known: dict[str, type[Method]] | None = None

    @property
    def known(self) -> dict[str, type[Method]]:
        if self._known is None:
            self._known = {**self._own, **_outside(self._own)}
        return self._known

    def __getitem__(self, name: str) -> type[Method]:
        return self.known[name]

    def __setitem__(self, name: str, method: type[Method]) -> None:
        self.known[name] = method

    def __delitem__(self, name: str) -> None:
        del self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _outside(own: dict[str, type[Method]]) -> dict[str, type[Method]]:
    """The methods of other packages. Refuses one that cannot be loaded, is no method, or has the name of another."""
    from importlib.metadata import entry_points

    found: dict[str, type[Method]] = {}
    places = {name: f"{method.__module__}:{method.__qualname__} of nap_bench itself" for name, method in own.items()}
    for point in entry_points(group=GROUP):
        place = f"{point.value} of package {point.dist.name} {point.dist.version}"
        if point.name in places:
            raise ValueError(
                f"Two methods are called {point.name!r}: {places[point.name]}, and {place}. Rename one, or uninstall its package."
            )
        try:
            method = point.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"Method {point.name!r}, {place}, cannot be loaded ({error}). Repair the package, or uninstall it."
            ) from error
        if not (isinstance(method, type) and issubclass(method, Method) and dataclasses.is_dataclass(method)):
            raise ValueError(
                f"{point.name!r}, {place}, is no method: wanted a frozen dataclass derived from {Method.__module__}.Method."
            )
        if method.name != point.name:
            raise ValueError(
                f"{place} is called {method.name!r}, its entry point {point.name!r}: give both the same name."
            )
        found[point.name], places[point.name] = method, place
    return found


METHODS = Registry(
    (
        BatchNorm,
        ContinualBackprop,
        CReLU,
        DASH,
        FullReset,
        GroupNorm,
        HareTortoise,
        Hyperspherical,
        ImplicitSchedule,
        InFeR,
        L2,
        LayerNorm,
        LayerReset,
        LeakyReLU,
        NaP,
        NoisyUpdates,
        OptimizerReset,
        Parseval,
        PlasticityInjection,
        ReDo,
        Regenerative,
        ReGraMa,
        RMSNorm,
        ShrinkPerturb,
        Spectral,
        SNR,
        UPGD,
        WeightClipping,
        WeightDecay,
        WeightNorm,
    )
)

__all__ = ["METHODS", "Method", "Phase", "Stack", "parse_stack", "stack_of"]


def parse_stack(text: str) -> tuple[Part, ...]:
    """`nap+weight_decay(coef=0.1)` -> parts, in canonical order; `baseline` or empty text is no method at all.

    Values are Python literals, of the type of the parameter's default: `nap(head=True, norm='rms')`.
    """
    import ast

    if text.strip() in ("", "baseline"):
        return ()
    try:
        node = ast.parse(text.strip(), mode="eval").body
        terms = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            terms.append(node.right)
            node = node.left
        parts = []
        for term in [*terms, node]:
            name, keywords = (term.func.id, term.keywords) if isinstance(term, ast.Call) else (term.id, [])
            if name not in METHODS:
                raise ValueError(nearest(name, METHODS, "method"))
            if isinstance(term, ast.Call) and (term.args or any(keyword.arg is None for keyword in keywords)):
                raise SyntaxError("parameters are named")
            parts.append((name, {keyword.arg: _literal(keyword.value) for keyword in keywords}))
    except (SyntaxError, AttributeError):
        raise ValueError(f"Cannot read the stack {text!r}. Wanted something like nap+weight_decay(coef=0.1).") from None
    for name, params in parts:
        _check_types(METHODS[name], params)
    built = [
        Part(name, METHODS[name].version, tuple(params.items())).build(METHODS, "method") for name, params in parts
    ]
    return tuple(sorted((Part.of(method) for method in built), key=lambda part: part.name))


def _literal(node) -> object:
    import ast

    try:
        return ast.literal_eval(node)
    except ValueError:
        raise SyntaxError("not a literal") from None


def _check_types(method: type[Method], params: dict[str, object]) -> None:
    """Refuse a value of another type than its default's: 1.0 for 1 would be the same run under another name."""
    for field in dataclasses.fields(method):
        if field.name not in params or field.default is None:
            continue
        value, kind = params[field.name], type(field.default)
        if value is None and "None" in str(field.type):
            continue
        if kind is float and type(value) is int:
            params[field.name] = float(value)
        elif type(value) is not kind:
            raise ValueError(f"{method.name} wants {field.name} of type {kind.__name__}; found {value!r}.")


def stack_of(parts: tuple[Part, ...]) -> Stack:
    """The methods themselves, ready to run."""
    return Stack([part.build(METHODS, "method") for part in parts])

"""Every method, one line each. Adding one is its file and a line here."""

from __future__ import annotations

import dataclasses

from nap_bench.methods.base import Method, Phase, Stack
from nap_bench.methods.implicit_schedule import ImplicitSchedule
from nap_bench.methods.layer_norm import LayerNorm
from nap_bench.methods.nap import NaP
from nap_bench.methods.optimizer_reset import OptimizerReset
from nap_bench.methods.rms_norm import RMSNorm
from nap_bench.methods.weight_decay import WeightDecay
from nap_bench.spec import Part, nearest

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ImplicitSchedule,
        LayerNorm,
        NaP,
        OptimizerReset,
        RMSNorm,
        WeightDecay,
    )
}

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

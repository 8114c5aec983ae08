"""What a run is: everything that can change a number, and nothing that cannot. Standard library only.

A `Run` is data. Its hash is its name on disk, so a result can never belong to another setting, and two exhibits that ask
for the same run share it.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

PRECISIONS = ("bf16", "fp32", "fp64")
PROTOCOL = 1
"""Version of the shared numerical code (loop, update, rng, blocks). Bumped when its numbers change."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Refuses NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def nearest(wanted: str, known: Iterable[str], what: str) -> str:
    """The text of an error about an unknown name: what was wanted, what exists, which is nearest."""
    known = sorted(known)
    close = difflib.get_close_matches(wanted, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {what} {wanted!r}.{hint} Known: {', '.join(known)}."


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def later(default: Any) -> Any:
    """A dataclass field that a component gained after results of it existed: at its default it is left out of a run's identity,
    so those results keep their names. The default must do exactly what the component did before.
    """
    return field(default=default, metadata={"later": True})


def _said(component: Any) -> dict[str, Any]:
    """The fields that belong to a component's identity: all but `later` ones at their default."""
    values = {f: getattr(component, f.name) for f in dataclasses.fields(component)}
    return {f.name: value for f, value in values.items() if not (f.metadata.get("later") and value == f.default)}


class Component:
    """Base of what a run is made of (methods, benchmarks, optimizers, schedules): frozen dataclasses with a name.

    `version` is bumped when the numbers of the component change; it is part of every run's identity.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1


@dataclass(frozen=True)
class Part:
    """Name, version and all parameters of a component, as data."""

    name: str
    version: int = 1
    params: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, component: Any) -> Part:
        """The Part that describes a component; every field counts, defaults included, except `later` ones at their default."""
        params = {name: _freeze(value) for name, value in _said(component).items()}
        return cls(component.name, component.version, tuple(sorted(params.items())))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Part:
        return cls(data["name"], data["version"], tuple(sorted((k, _freeze(v)) for k, v in data["params"].items())))

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "params": dict(self.params)}

    def build(self, registry: Mapping[str, type], what: str) -> Any:
        """The component itself. Refuses an unknown name, an unknown parameter and another version."""
        if self.name not in registry:
            raise ValueError(nearest(self.name, registry, what))
        kind = registry[self.name]
        if kind.version != self.version:
            raise ValueError(
                f"{what} {self.name!r} is version {kind.version} here, the run wants version {self.version}: "
                f"its numbers would differ. Use the release that made the run, or plan it anew with `nap-bench plan`."
            )
        known = {f.name for f in dataclasses.fields(kind)}
        for key, _ in self.params:
            if key not in known:
                raise ValueError(nearest(key, known, f"parameter of {what} {self.name!r}"))
        return kind(**dict(self.params))


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A network as data. Methods edit it; nothing edits a built module.

    Hidden layers carry a bias exactly where no norm follows (paper A.1: the norm's offset makes it redundant).

    family: key of `models.FAMILIES`.  size: what the family needs, e.g. (("widths", (128, 128)),).
    activation: "relu", "leaky_relu" (of `negative_slope`), "tanh", or "crelu" (relu(h) beside relu(-h): twice the features).
    norm: "none", "layer", "rms", "batch" or "group" (`norm_groups` of them), placed immediately before every nonlinearity,
      or before the norm that the network has of its own there (`own_norm` of its size).
    norm_eps: added to the variance or mean square.  norm_affine: learnable scale and offset.
    init: "torch" (PyTorch's default, U(+-1/sqrt(fan_in))), "he" (N(0, 2/fan_in), biases 0) or "he_uniform" (U(+-sqrt(6/fan_in)),
      of the output layer U(+-sqrt(3/fan_in)), biases 0).
    init_scale: multiplies the initial hidden weights (not biases, not the output layer).
    auxiliary: how many linear heads read the last hidden features besides the output layer; no output comes of them.
    causal: no token sees a later one, where a family reads strings; False for a model that fills in what is hidden.
    unit_scale: a learned factor of every unit's output before its bias, see `blocks.UNIT_SCALES`; "none" is none.
    injections: pairs of frozen heads beside the trained one (plasticity injection), of its last `head_layers` layers.
    """

    family: str
    size: tuple[tuple[str, Any], ...]
    activation: str = "relu"
    norm: str = "none"
    norm_eps: float = 1e-5
    norm_affine: bool = True
    init: str = "torch"
    init_scale: float = 1.0
    negative_slope: float = later(0.01)
    norm_groups: int = later(4)
    auxiliary: int = later(0)
    causal: bool = later(True)
    unit_scale: str = later("none")
    injections: int = later(0)
    head_layers: int = later(2)

    def as_dict(self) -> dict[str, Any]:
        return {**_said(self), "size": dict(self.size)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        size = tuple(sorted((k, _freeze(v)) for k, v in data["size"].items()))
        return cls(**{**data, "size": size})


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that can change a number of a block of seeds trained together.

    model: before methods edit it (the edited one is recorded with the result).  methods: in canonical order (by name).
    """

    benchmark: Part
    model: ModelSpec
    optimizer: Part
    schedule: Part
    seeds: tuple[int, ...]
    methods: tuple[Part, ...] = ()
    precision: str = "fp32"
    protocol: int = field(default=PROTOCOL)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"A run needs distinct, non-negative seeds; found {self.seeds}.")
        if self.precision not in PRECISIONS:
            raise ValueError(nearest(self.precision, PRECISIONS, "precision"))
        object.__setattr__(self, "methods", tuple(sorted(self.methods, key=lambda part: part.name)))

    def as_dict(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark.as_dict(),
            "model": self.model.as_dict(),
            "methods": [part.as_dict() for part in self.methods],
            "optimizer": self.optimizer.as_dict(),
            "schedule": self.schedule.as_dict(),
            "seeds": list(self.seeds),
            "precision": self.precision,
            "protocol": self.protocol,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        return cls(
            benchmark=Part.from_dict(data["benchmark"]),
            model=ModelSpec.from_dict(data["model"]),
            methods=tuple(Part.from_dict(part) for part in data["methods"]),
            optimizer=Part.from_dict(data["optimizer"]),
            schedule=Part.from_dict(data["schedule"]),
            seeds=tuple(data["seeds"]),
            precision=data["precision"],
            protocol=data["protocol"],
        )

    @property
    def stack(self) -> str:
        """The methods' names in canonical order, joined by '+'; 'baseline' when there are none."""
        return "+".join(part.name for part in self.methods) or "baseline"

    def _named(self, data: dict[str, Any]) -> str:
        digest = hashlib.sha256(canonical(data).encode()).hexdigest()[:10]
        return f"{self.benchmark.name}.{self.model.family}.{self.stack}-{digest}"

    @property
    def run_id(self) -> str:
        """Name on disk: readable stem and the hash of everything."""
        return self._named(self.as_dict())

    @property
    def cell_id(self) -> str:
        """The same without seeds; statistics group by it."""
        return self._named({k: v for k, v in self.as_dict().items() if k != "seeds"})
